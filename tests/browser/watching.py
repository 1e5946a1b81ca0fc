"""Windows in which everything is noted that a page must not do."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Request, WebError

from cascade.local import LocalTree

REFUSALS = """addEventListener("securitypolicyviolation",
    (event) => console.error(`refused by the policy: ${event.violatedDirective} ${event.blockedURI}`))"""


class Watched:
    """A window of the browser. ``said``: words in the console, scripts that failed, dialogs, what the policy refused,
    requests that failed or went to another host."""

    def __init__(self, browser: Browser, tree: LocalTree, **options: Any) -> None:
        self.tree = tree
        self.said: list[str] = []
        self.context: BrowserContext = browser.new_context(base_url=tree.url, **options)
        self.context.add_init_script(REFUSALS)
        self.context.on("console", self._heard)
        self.context.on("weberror", self._failed)
        self.context.on("dialog", self._asked_by)
        self.context.on("request", self._asked)
        self.page = self.context.new_page()

    def sign_in(self, next: str = "/") -> None:
        """By the form that asks for it."""
        page = self.page
        page.goto(next)
        page.fill("input[name=username]", self.tree.username)
        page.fill("input[name=password]", self.tree.password)
        page.press("input[name=password]", "Enter")
        page.locator("header .menu").wait_for()

    def close(self) -> None:
        """Raises AssertionError where there is something to say."""
        try:
            self.still_well()
        finally:
            self.context.close()

    def still_well(self) -> None:
        """Raises AssertionError where there is something to say."""
        hurt, said = self.page.evaluate("window.__pwned"), list(self.said)
        assert (said, hurt) == ([], None), (said, hurt)

    def _heard(self, message: ConsoleMessage) -> None:
        # Chromium has advice for who reads a canvas, which are the tests.
        if message.type not in ("debug", "info") and "willReadFrequently" not in message.text:
            self.said.append(f"{message.location.get('url')}: {message.text}")

    def _failed(self, error: WebError) -> None:
        self.said.append(f"{error.page.url if error.page else ''}: a script failed: {error.error}")

    def _asked_by(self, dialog: Dialog) -> None:
        self.said.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.tree.url, "data:", "blob:")):
            self.said.append(f"asked {request.url}")
