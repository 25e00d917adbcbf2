// Command receiver is a backend in a pod: it takes OTLP profiles over gRPC and
// writes each request, as it came, into a file of a folder that the test reads.
//
//	receiver -listen :4317 -dir /received
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"

	"go.opentelemetry.io/collector/pdata/pprofile/pprofileotlp"
	"google.golang.org/grpc"
	_ "google.golang.org/grpc/encoding/gzip" // takes compressed requests
)

func main() {
	listen := flag.String("listen", ":4317", "`HOST:PORT` to listen on")
	dir := flag.String("dir", "/received", "`folder` for requests")
	flag.Parse()
	if err := serve(*listen, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "receiver:", err)
		os.Exit(1)
	}
}

func serve(listen, dir string) error {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	pprofileotlp.RegisterGRPCServer(s, &folder{dir: dir})
	fmt.Println("listening on", listener.Addr())
	return s.Serve(listener)
}

// folder takes requests.
type folder struct {
	pprofileotlp.UnimplementedGRPCServer
	dir string
	n   atomic.Int64
}

// Export writes a request before it is answered, under its name when it is whole.
func (f *folder) Export(_ context.Context, q pprofileotlp.ExportRequest) (pprofileotlp.ExportResponse, error) {
	answer := pprofileotlp.NewExportResponse()
	data, err := q.MarshalProto()
	if err != nil {
		return answer, err
	}
	name := filepath.Join(f.dir, fmt.Sprintf("%06d", f.n.Add(1)))
	if err := os.WriteFile(name+".part", data, 0o644); err != nil {
		return answer, err
	}
	return answer, os.Rename(name+".part", name+".pb")
}
