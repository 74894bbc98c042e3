# The image holds the binary, certificates and licences, and nothing else: no shell, no package manager, no root.
# Pin the base by digest where you build releases: --build-arg GO_IMAGE=golang:1.26-bookworm@sha256:… No digest is named here,
# because none could be verified where this was written.
ARG GO_IMAGE=golang:1.26-bookworm
FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# .git is not here, so `make image` says what is built.
ARG VERSION=
ARG COMMIT=
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION} -X main.commit=${COMMIT}" \
  -o /holdfast ./cmd/holdfast

# The licences of all that is linked, and notices where there are any.
RUN set -eu; install -D -m 0644 LICENSE /licenses/holdfast/LICENSE; \
  go list -deps -f '{{with .Module}}{{.Path}} {{.Dir}}{{end}}' ./cmd/holdfast | sort -u | while read -r path dir; do \
    for f in "$dir"/LICEN[CS]E* "$dir"/NOTICE* "$dir"/COPYING*; do \
      [ ! -f "$f" ] || install -D -m 0644 "$f" "/licenses/$path/${f##*/}"; \
    done; \
    [ -d "/licenses/$path" ] || { echo "$path has no licence"; exit 1; }; \
  done

FROM scratch
ARG VERSION=
ARG COMMIT=
LABEL org.opencontainers.image.title=holdfast \
  org.opencontainers.image.description="Durable state for conversational assistants, on Postgres" \
  org.opencontainers.image.licenses=Apache-2.0 \
  org.opencontainers.image.version=${VERSION} \
  org.opencontainers.image.revision=${COMMIT}
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /licenses /usr/share/licenses
COPY --from=build /holdfast /usr/local/bin/holdfast
# `serve` listens on $PORT, which Cloud Run and its like set themselves.
ENV PORT=8080
EXPOSE 8080
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/holdfast"]
CMD ["serve"]
