"""The pages people see: the overview, one-time sign-in links, health; and their addresses."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from django.conf import settings
from django.contrib.admin.views.decorators import staff_member_required
from django.contrib.auth import login
from django.contrib.auth.models import User
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.urls import path, reverse
from django.utils import timezone
from django.utils.encoding import force_bytes, force_str
from django.utils.http import base36_to_int, urlsafe_base64_decode, urlsafe_base64_encode
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST, require_safe

# Pages that most servers are rarely asked for are imported by their views: together they are 2 MB.
from api import below, node_page, overview, run_page, runs_page
from nodes.models import Node
from nodes.protocol import CascadeError, NotFound
from nodes.transactions import write


def _address(request: HttpRequest) -> str:
    return request.build_absolute_uri("/").rstrip("/")


@require_safe
@never_cache
@staff_member_required
def front_page(request: HttpRequest) -> HttpResponse:
    return _front_page(request)


@require_POST
@never_cache
@staff_member_required
def node_add(request: HttpRequest) -> HttpResponse:
    """A first node: its page, with its key; or the overview again with what speaks against it."""
    try:
        return node_page.add(request)
    except CascadeError as error:
        return _front_page(request, str(error))


def _front_page(request: HttpRequest, problem: str = "") -> HttpResponse:
    snapshot = overview.shown.look()
    nodes = [snapshot.parts[name].view for name in snapshot.lists["nodes"]]
    return render(
        request,
        "overview.html",
        {
            "totals": snapshot.html("totals"),
            "throughput": snapshot.html("throughput"),
            "history": snapshot.html("history"),
            "steps": snapshot.html("steps"),
            "journal": snapshot.html("journal"),
            "nodes": snapshot.html("nodes"),
            "many": snapshot.parts["totals"].view.nodes if len(nodes) >= overview.NODES_SHOWN else 0,
            "shown": overview.NODES_SHOWN,
            "own": all(getattr(each, "role", "") == Node.Role.STANDALONE for each in nodes),
            "runs": snapshot.html("runs"),
            "allocations": snapshot.html("allocations"),
            "address": _address(request),
            "problem": problem,
            "typed": request.POST,
            "now": int(timezone.now().timestamp() * 1000),
        },
        status=400 if problem else 200,
    )


@require_safe
@never_cache
@staff_member_required
def runs(request: HttpRequest) -> HttpResponse:
    return runs_page.show(request)


@require_safe
@never_cache
@staff_member_required
def run(request: HttpRequest, pk: int) -> HttpResponse:
    try:
        return run_page.show(request, pk)
    except NotFound as error:
        raise Http404(str(error)) from None


@require_POST
@staff_member_required
def run_verb(request: HttpRequest, pk: int, verb: str) -> HttpResponse:
    """Cancel or retry, from the run's page."""
    try:
        return run_page.act(request, pk, verb)
    except NotFound as error:
        raise Http404(str(error)) from None


@require_safe
@never_cache
@staff_member_required
def node(request: HttpRequest, pk: int) -> HttpResponse:
    try:
        return node_page.show(request, pk)
    except NotFound as error:
        raise Http404(str(error)) from None


@require_POST
@never_cache
@staff_member_required
def node_verb(request: HttpRequest, pk: int, verb: str) -> HttpResponse:
    """A button or a form of the node's page."""
    try:
        return node_page.act(request, pk, verb)
    except NotFound as error:
        raise Http404(str(error)) from None


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@staff_member_required
def submit(request: HttpRequest) -> HttpResponse:
    """The form of a run; a POST is one of its buttons."""
    from api import submit_page

    try:
        return submit_page.act(request) if request.method == "POST" else submit_page.show(request)
    except NotFound as error:
        raise Http404(str(error)) from None


@require_safe
@never_cache
@staff_member_required
def run_items(request: HttpRequest, pk: int) -> HttpResponse:
    from api import items_page

    try:
        return items_page.show(request, pk)
    except NotFound as error:
        raise Http404(str(error)) from None


@require_safe
@never_cache
@staff_member_required
def allocation(request: HttpRequest, pk: int) -> HttpResponse:
    from api import allocation_page

    try:
        return allocation_page.show(request, pk)
    except NotFound as error:
        raise Http404(str(error)) from None


@require_safe
@never_cache
@staff_member_required
def what_if(request: HttpRequest) -> HttpResponse:
    from api import whatif_page

    return whatif_page.show(request)


@require_safe
@never_cache
@staff_member_required
def journal(request: HttpRequest) -> HttpResponse:
    from api import journal_page

    return journal_page.show(request)


# ---- rows ------------------------------------------------------------------------------------------------------------


def _read(request: HttpRequest, show: Callable[..., HttpResponse], *arguments: object) -> HttpResponse:
    """A page of rows; or one that says why they cannot be read here and now."""
    try:
        return show(request, *arguments)
    except NotFound as error:
        raise Http404(str(error)) from None
    except CascadeError as error:
        from api import tables_page

        return tables_page.problem(request, error)


@require_safe
@never_cache
@staff_member_required
def tables(request: HttpRequest) -> HttpResponse:
    from api import tables_page

    return _read(request, tables_page.tables)


@require_safe
@never_cache
@staff_member_required
def table(request: HttpRequest, name: str) -> HttpResponse:
    from api import tables_page

    return _read(request, tables_page.table, name)


@require_safe
@never_cache
@staff_member_required
def chart(request: HttpRequest, name: str) -> HttpResponse:
    from api import charts_page

    return _read(request, charts_page.chart, name)


@require_safe
@never_cache
@staff_member_required
def articles(request: HttpRequest) -> HttpResponse:
    from api import charts_page

    return _read(request, charts_page.articles)


@require_safe
@never_cache
@staff_member_required
def article(request: HttpRequest) -> HttpResponse:
    from api import charts_page

    return _read(request, charts_page.article)


@require_safe
@never_cache
@staff_member_required
def run_rows(request: HttpRequest, pk: int) -> HttpResponse:
    """To the table with a run's rows."""
    from api import tables_page

    return _read(request, tables_page.of_run, pk)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@staff_member_required
def sql(request: HttpRequest) -> HttpResponse:
    from api import sql_page

    return _read(request, sql_page.run if request.method == "POST" else sql_page.show)


# ---- one-time sign-in --------------------------------------------------------------------------------------------

SIGN_IN_SECONDS = 600


class SignInTokens(PasswordResetTokenGenerator):
    """Tokens that end with the next sign-in, whichever way it happens, and after ``SIGN_IN_SECONDS`` at the latest."""

    key_salt = "api.pages.SignInTokens"

    def _make_hash_value(self, user: User, timestamp: int) -> str:
        # Unlike a password reset's, with the microseconds: two sign-ins within a second are two.
        last = user.last_login.isoformat() if user.last_login else ""
        return f"{user.pk}|{user.password}|{last}|{timestamp}"

    def _now(self) -> dt.datetime:
        return timezone.now().astimezone(dt.UTC).replace(tzinfo=None)

    def check_token(self, user: User | None, token: str | None) -> bool:
        if user is None or not token or not super().check_token(user, token):
            return False
        made = base36_to_int(token.partition("-")[0])
        return self._num_seconds(self._now()) - made <= SIGN_IN_SECONDS


sign_in_tokens = SignInTokens()


def sign_in_link(user: User) -> str:
    """The path that signs ``user`` in, once, within ten minutes. To be shown to nobody else."""
    uid = urlsafe_base64_encode(force_bytes(user.pk))
    return reverse("sign-in", args=[uid, sign_in_tokens.make_token(user)])


def _link_holder(uidb64: str, token: str) -> User | None:
    """The user whose link this is, used up by this call; None for a link that does not, or no longer, work."""
    users = User.objects
    try:
        user = users.get(pk=force_str(urlsafe_base64_decode(uidb64)), is_active=True)
    except (User.DoesNotExist, ValueError, OverflowError):
        return None
    if not sign_in_tokens.check_token(user, token):
        return None
    # The one of two clicks at the same moment that moves last_login has used the link; the other has not.
    with write():
        used = users.filter(pk=user.pk, last_login=user.last_login).update(last_login=timezone.now())
    return user if used else None


@require_GET
@never_cache
def sign_in(request: HttpRequest, uidb64: str, token: str) -> HttpResponse:
    user = _link_holder(uidb64, token)
    if user is None:
        response = render(
            request, "sign_in.html", {"minutes": SIGN_IN_SECONDS // 60, "address": _address(request)}, status=403
        )
    else:
        with write():
            login(request, user, backend=settings.AUTHENTICATION_BACKENDS[0])
        response = redirect("overview")
    # The address is the secret: it must not reach another site.
    response["Referrer-Policy"] = "no-referrer"
    return response


@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """For pages that name no icon of their own, as the admin's."""
    return redirect(static("cascade/favicon.svg"), permanent=True)


urlpatterns = [
    path("", front_page, name="overview"),
    path("runs", runs, name="runs"),
    path("runs/<int:pk>", run, name="run"),
    path("runs/<int:pk>/items", run_items, name="run-items"),
    path("runs/<int:pk>/cancel", run_verb, {"verb": "cancel"}, name="run-cancel"),
    path("runs/<int:pk>/retry", run_verb, {"verb": "retry"}, name="run-retry"),
    path("allocations/<int:pk>", allocation, name="allocation"),
    path("submit", submit, name="submit"),
    path("what-if", what_if, name="what-if"),
    path("journal", journal, name="journal"),
    path("runs/<int:pk>/rows", run_rows, name="run-rows"),
    path("tables", tables, name="tables"),
    path("tables/<str:name>", table, name="table"),
    path("tables/<str:name>/chart", chart, name="chart"),
    path("articles", articles, name="articles"),
    path("articles/text", article, name="article"),
    path("sql", sql, name="sql"),
    path("nodes/add", node_add, name="node-add"),
    path("nodes/<int:pk>", node, name="node"),
    *(
        path(f"nodes/<int:pk>/{verb}", node_verb, {"verb": verb}, name=f"node-{verb}")
        for verb in ("limits", "drain", "resume", "issue", "rotate", "revoke")
    ),
    path("nodes/<int:pk>/below", below.page, name="below"),
    path("sign-in/<str:uidb64>/<str:token>/", sign_in, name="sign-in"),
    path("favicon.ico", favicon),
]
