"""The commands that start a child, for whoever was just given its key: shown at a terminal, and on the node's page."""

from __future__ import annotations

import shlex

from nodes.models import Node


def commands(node: Node, parent: str, access_key: str, secret_key: str) -> dict[str, str]:
    """By what they need: ``django``, and for a plain child ``agent``, which runs without it.

    ``parent``: this server's address as the child reaches it.
    """
    environment = f"CASCADE_ACCESS_KEY={access_key} CASCADE_SECRET_KEY={secret_key}"
    relay = node.role == Node.Role.RELAY
    served = f"python manage.py runserver 8001 --role {'relay' if relay else 'child'}"
    found = {"django": f"{environment} {served} --parent {shlex.quote(parent)}"}
    if not relay:
        found["agent"] = f"{environment} python -m nodes.agent --parent {shlex.quote(parent)}"
    return found
