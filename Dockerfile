# The image holds the binary and certificates, and nothing else: no shell, no package manager, no root.
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

FROM scratch
ARG VERSION=
ARG COMMIT=
LABEL org.opencontainers.image.title=holdfast \
  org.opencontainers.image.description="Durable state for conversational assistants, on Postgres" \
  org.opencontainers.image.licenses=Apache-2.0 \
  org.opencontainers.image.version=${VERSION} \
  org.opencontainers.image.revision=${COMMIT}
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /holdfast /usr/local/bin/holdfast
# `serve` listens on $PORT, which Cloud Run and its like set themselves.
ENV PORT=8080
EXPOSE 8080
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/holdfast"]
CMD ["serve"]
