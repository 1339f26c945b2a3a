# The page and its HTTP call, on a CPU, as a user without rights:
#   docker build -t densescore . && docker run --rm -p 7860:7860 densescore
FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/densescore
ENV PATH=/opt/densescore/bin:$PATH
# From PyPI torch would bring CUDA, gigabytes of it.
RUN pip install --index-url https://download.pytorch.org/whl/cpu 'torch>=2.9' 'torchvision>=0.24'
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY densescore densescore
COPY kernels kernels
RUN pip install '.[demo]'

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 densescore
COPY --from=build /opt/densescore /opt/densescore
ENV PATH=/opt/densescore/bin:$PATH PYTHONUNBUFFERED=1
USER densescore
WORKDIR /home/densescore
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
ENTRYPOINT ["densescore"]
CMD ["demo", "--host", "0.0.0.0", "--port", "7860"]
