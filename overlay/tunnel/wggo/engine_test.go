package wggo

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"meshd/overlay/tunnel/tunneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	tunneltest.Contract(t, func(_ *testing.T, s tunneltest.Setup) tunneltest.Engine {
		e := New(Options{TUN: s.Pipe, PrivateKey: s.PrivateKey, Port: s.Port, Log: s.Log})
		e.patience = time.Second
		return e
	})
}
