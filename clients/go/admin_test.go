package onced_test

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	oncedv1 "onced.dev/go/onced/v1"
)

// administer is what an operator does, by the bare API.
func administer(t *testing.T, server string) oncedv1.AdminServiceClient {
	t.Helper()
	connection, err := grpc.NewClient(server, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return oncedv1.NewAdminServiceClient(connection)
}
