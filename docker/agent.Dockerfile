# docker buildx build -f docker/agent.Dockerfile --platform linux/amd64,linux/arm64 .
# Without Docker: make images.
FROM --platform=$BUILDPLATFORM golang:1.26.8-trixie AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETARCH VERSION COMMIT
RUN mkdir -m 1777 -p /image/tmp && install -D -m 644 -t /image/etc/ssl/certs /etc/ssl/certs/ca-certificates.crt && \
    CGO_ENABLED=0 GOOS=linux GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
    -ldflags "-X main.version=$VERSION -X main.commit=$COMMIT" -o /image/usr/local/bin/kalypso-agent ./cmd/agent

FROM scratch
COPY --from=build /image/ /
ENV PATH=/usr/local/bin HOME=/tmp
# Loading BPF programs takes root; a pod gives it six capabilities and no other.
USER 0:0
ENTRYPOINT ["/usr/local/bin/kalypso-agent"]
