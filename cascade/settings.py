"""Django's settings, derived from ``cascade.config``; nothing is decided here that an operator may want to change."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from cascade import __version__
from cascade.config import BASE_DIR, Config, current
from nodes.given import SettingsError


def _read() -> Config:
    try:
        return current().config
    except SettingsError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2) from None


def _secret_key(file: Path) -> str:
    """The key kept in the data folder, made on first use, readable by its owner only."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
                out.write(secrets.token_urlsafe(50))
        except FileExistsError:
            pass  # another process was first; its key is the one
    return file.read_text()


CASCADE = _read()

SECRET_KEY = CASCADE.django_key or _secret_key(CASCADE.data_dir / "secret_key")
DEBUG = CASCADE.debug
ALLOWED_HOSTS = CASCADE.hosts
CSRF_TRUSTED_ORIGINS = CASCADE.csrf_trusted_origins

INSTALLED_APPS = [
    # First, so that its runserver is the one. It is Daphne's with more; as an app Daphne would load its server, which
    # takes as long as all of Django, into every command.
    "cascade",
    "nodes",
    "dispatch",
    "api",
    "cascade.admin_apps.Theme",  # before the admin, some of whose templates and scripts it replaces
    "cascade.admin_apps.Admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "channels",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
]

# What serves a child: its own dialect and nothing else. Pages, API and models would cost it 40 MB.
SERVES_CHILD = CASCADE.role == "child" and sys.argv[1:2] == ["runserver"]
if SERVES_CHILD:
    INSTALLED_APPS = ["cascade"]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "api.languages.middleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "api.dialects.node" if SERVES_CHILD else "cascade.urls"
ASGI_APPLICATION = "cascade.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]


def _postgresql(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    options = {
        # By it another process finds the connections of one that is frozen, and ends them; see dispatch.leading.
        "application_name": PROCESS,
        "connect_timeout": "5",
        # A peer that has vanished is noticed within some 20 s, by either side.
        **{"keepalives_idle": "10", "keepalives_interval": "3", "keepalives_count": "3", "tcp_user_timeout": "15000"},
        # A process frozen in the middle of a transaction holds its locks for no longer than this, in milliseconds.
        "options": "-c idle_in_transaction_session_timeout=15000 -c tcp_keepalives_idle=10 "
        "-c tcp_keepalives_interval=3 -c tcp_keepalives_count=3",
    }
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.strip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(parts.hostname or ""),
        "PORT": str(parts.port or ""),
        # Each request of the native API has a thread of its own, and a connection that it would leave open. Loops and
        # the threads of the agent's verbs keep theirs: this is looked at when a request ends, and in its thread.
        "CONN_MAX_AGE": 0,
        # A connection that the server has closed, at its restart say, is replaced instead of failing a request.
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": options | dict(parse_qsl(parts.query)),
    }


# Host, process and a token, since hosts may be called alike; PostgreSQL keeps 63 characters of a name.
PROCESS = f"cascade {socket.gethostname()[:24]} {os.getpid()} {secrets.token_hex(2)}"

SQLITE = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": CASCADE.database,
    # The verbs run on pool threads; a connection per thread that is kept saves opening one per message.
    "CONN_MAX_AGE": None,
    "OPTIONS": {
        # Without IMMEDIATE, two processes that read and then write fail with "database is locked".
        "transaction_mode": "IMMEDIATE",
        "timeout": 30,
        "init_command": (
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-16000; PRAGMA temp_store=MEMORY;"
            # A longer log between checkpoints: each one copies pages back and syncs twice.
            "PRAGMA wal_autocheckpoint=8000;"
        ),
    },
    # A file, not shared memory: tests use the same threads and processes as production.
    "TEST": {"NAME": CASCADE.data_dir / "test.sqlite3"},
}

if not CASCADE.database_url:
    # The REST framework loads PostgreSQL's driver wherever that is installed: 5 MB for fields that nothing here has.
    sys.modules.setdefault("django.contrib.postgres", None)  # type: ignore[arg-type]
DATABASES = {"default": _postgresql(CASCADE.database_url) if CASCADE.database_url else SQLITE}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Within a process; what other processes are to hear goes over dispatch.bus.
CHANNEL_LAYERS = {"default": {"BACKEND": "cascade.layer.Layer"}}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "/"

# Pages are in what their reader chose, or the browser asks for; the API and the terminal speak the first of these.
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("zh-hans", "简体中文")]
LOCALE_PATHS = [BASE_DIR / "locale"]
LANGUAGE_COOKIE_AGE, LANGUAGE_COOKIE_HTTPONLY, LANGUAGE_COOKIE_SAMESITE = 31_536_000, True, "Lax"
LANGUAGE_COOKIE_SECURE = CASCADE.https
# Django sets the zone of the process; who drives a child compares its times with a local clock.
TIME_ZONE = None if SERVES_CHILD and "time_zone" not in CASCADE.model_fields_set else CASCADE.time_zone
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = CASCADE.data_dir / "static"
STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # whitenoise warns about a missing one
STATICFILES_DIRS = [BASE_DIR / "templates" / "static"]
# Served from where the packages have them, so that nothing has to be collected first.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG

DATA_UPLOAD_MAX_MEMORY_SIZE = CASCADE.upload_limit
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = CASCADE.https
SECURE_HSTS_SECONDS = 31_536_000 if CASCADE.https else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = CASCADE.https
if CASCADE.https:
    # Browsers take such a cookie from this very host over TLS only: no neighbour below the same domain can set it.
    SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "__Host-sessionid", "__Host-csrftoken"
SESSION_COOKIE_HTTPONLY, SESSION_COOKIE_SAMESITE, CSRF_COOKIE_SAMESITE = True, "Lax", "Lax"
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if CASCADE.https else None
X_FRAME_OPTIONS = "DENY"

# The theme of /admin/; see cascade.administration. Its files are served by this server, like all others.
UNFOLD = {
    "SITE_TITLE": "Cascade",
    "SITE_HEADER": "Cascade",
    "SITE_URL": "/",
    "SITE_ICON": "/static/cascade/favicon.svg",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "/static/cascade/favicon.svg"}],
    "STYLES": ["/static/cascade/admin.css"],
    "SHOW_HISTORY": True,
    "SHOW_BACK_BUTTON": True,
    "BORDER_RADIUS": "5px",
    "COLORS": {
        # The blue of the operational pages' links, lighter and darker.
        "primary": {
            "50": "#eef4fc",
            "100": "#d9e6f8",
            "200": "#b8d0f2",
            "300": "#8cc8ff",
            "400": "#5d97e3",
            "500": "#3a78d0",
            "600": "#1c5bb5",
            "700": "#194c96",
            "800": "#183f79",
            "900": "#173661",
            "950": "#102240",
        },
    },
    "COMMAND": {"search_models": False, "show_history": False},
    "SIDEBAR": {"show_search": True, "command_search": True, "navigation": "cascade.administration.navigation"},
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "rest_framework_simplejwt.authentication.JWTAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAdminUser"],
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.LimitOffsetPagination",
    "PAGE_SIZE": 100,
    "DEFAULT_FILTER_BACKENDS": [
        "django_filters.rest_framework.DjangoFilterBackend",
        "rest_framework.filters.OrderingFilter",
    ],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "api.errors.exception_handler",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
}
SIMPLE_JWT = {"ACCESS_TOKEN_LIFETIME": timedelta(hours=1), "REFRESH_TOKEN_LIFETIME": timedelta(days=7)}
SPECTACULAR_SETTINGS = {
    "TITLE": "Cascade",
    "DESCRIPTION": "Runs, shards and nodes of a Cascade parent, and the verbs its children speak.",
    "VERSION": __version__,
    "SERVE_INCLUDE_SCHEMA": False,
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "ENUM_NAME_OVERRIDES": {
        "RunState": "api.schema.RUN_STATES",
        "ShardState": "api.schema.SHARD_STATES",
        "AllocationState": "api.schema.ALLOCATION_STATES",
        "SourceKind": "dispatch.models.Source.Kind",
    },
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "api.schema.agent_verbs",
        "api.schema.task_params",
        "api.schema.problems",
    ],
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": CASCADE.log_level},
    "loggers": {
        # One line per request drowns everything else at hundreds of requests a second.
        "django.channels.server": {"level": "WARNING"},
        "daphne": {"level": "WARNING"},
    },
}
