module onced.dev/go/onced

go 1.24.0

require (
	github.com/go-json-experiment/json v0.0.0-20250813024750-ebf49471dced
	github.com/google/uuid v1.6.0
	golang.org/x/sys v0.41.0
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260209200024-4cfbd4190f57
	google.golang.org/grpc v1.80.0
	google.golang.org/protobuf v1.36.12
)

require (
	golang.org/x/net v0.49.0 // indirect
	golang.org/x/text v0.33.0 // indirect
)
