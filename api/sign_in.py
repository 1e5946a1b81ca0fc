"""The sign-in page's password, throttled together with the token endpoint's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from api.authentication import client_address
from api.guesses import PasswordTry
from nodes.protocol import TooMany

View = Callable[..., HttpResponse]


def throttled(sign_in: View) -> View:
    """``sign_in``, Django's own view, with its wrong passwords counted; 429 with Retry-After where there are too many.

    A sign-in that succeeds answers with a redirect, one that does not shows the form again.
    """

    @wraps(sign_in)
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.method != "POST":
            return sign_in(request, *args, **kwargs)
        try:
            attempt = PasswordTry(client_address(request), request.POST.get("username", ""))
        except TooMany as error:
            seconds = math.ceil(error.retry_after)
            response = render(request, "too_many.html", {"seconds": seconds}, status=error.status)
            response["Retry-After"] = str(seconds)
            return response
        response = sign_in(request, *args, **kwargs)
        if response.status_code == 302:
            attempt.right()
        return response

    return answer
