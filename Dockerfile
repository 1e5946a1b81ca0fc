# One image for parent, children and a standalone server; the command says which. Not root; state is in /data.
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app

# Before the code, so that a change of it does not install everything anew.
COPY requirements.txt requirements-sample.txt requirements-scale.txt ./
# A new volume mounted at /data or /keys takes their owner from here. By number: a cluster can tell that it is not root.
RUN pip install --root-user-action=ignore -r requirements-sample.txt -r requirements-scale.txt \
    && useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin cascade \
    && install -d -o cascade -g cascade -m 0700 /data /keys

COPY manage.py LICENSE ./
COPY api api
COPY cascade cascade
COPY dispatch dispatch
COPY nodes nodes
COPY templates templates
COPY locale locale
COPY deploy deploy
# The server may not write here, and would compile all of it at each start; nor may it read what a strict umask kept.
RUN python -m compileall -q . && chmod -R a+rX .

ENV CASCADE_DATA_DIR=/data CASCADE_HOST=0.0.0.0
USER 10001:10001
VOLUME /data
EXPOSE 8000 8900
# A parent answers on 8000, a child on 8900; an agent alone (python -m nodes.agent) has no port: switch this off for it.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["python", "deploy/healthy.py"]
ENTRYPOINT ["python", "manage.py"]
CMD ["runserver", "--role", "standalone"]
