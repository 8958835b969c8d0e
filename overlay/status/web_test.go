package status_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/status"
)

// freePort gives an address of loopback on which nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	l := occupy(t, "127.0.0.1:0")
	l.Close()
	return l.Addr().String()
}

func occupy(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// answers tells whether the monitor answers at an address.
func answers(t *testing.T, address string) bool {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + "/healthz")
	if err != nil {
		return false
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return err == nil && response.StatusCode == http.StatusOK && string(body) == "ok\n"
}

// awaitSilence waits until nobody listens at an address: the old listener is let
// go beside the call.
func awaitSilence(t *testing.T, address string) {
	t.Helper()
	for range 500 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return
		}
		conn.Close()
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("somebody listens on %s", address)
}

func startWeb(t *testing.T, address string, d *daemon) (set func(string) error, stop func() error) {
	t.Helper()
	server := status.NewServer(status.Options{Control: filepath.Join(t.TempDir(), "s"), HTTP: address, Daemon: d})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	stop = func() error { cancel(); err := <-done; done <- err; return err }
	t.Cleanup(func() { _ = stop() })
	select {
	case <-server.Ready():
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	return func(a string) error { return server.SetHTTP(t.Context(), a) }, stop
}

func TestSetHTTP(t *testing.T) {
	first, second := freePort(t), freePort(t)
	set, stop := startWeb(t, first, &daemon{})
	move := func(t *testing.T, address string) {
		t.Helper()
		if err := set(address); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("another address", func(t *testing.T) {
		move(t, second)
		if !answers(t, second) {
			t.Error("no answer at the new address")
		}
		awaitSilence(t, first)
	})
	t.Run("a taken one", func(t *testing.T) {
		taken := occupy(t, "127.0.0.1:0").Addr().String()
		if err := set(taken); !errors.Is(err, status.ErrInUse) || !strings.Contains(err.Error(), taken) {
			t.Errorf("error %v, want ErrInUse with the address", err)
		}
		if !answers(t, second) {
			t.Error("the old listener is lost")
		}
	})
	t.Run("one that this host does not have", func(t *testing.T) {
		if err := set("192.0.2.1:9740"); err == nil {
			t.Error("no error")
		}
		if !answers(t, second) {
			t.Error("the old listener is lost")
		}
	})
	t.Run("the same port everywhere, and back", func(t *testing.T) {
		_, port, _ := net.SplitHostPort(second)
		for _, address := range []string{":" + port, second} {
			move(t, address)
			if !answers(t, second) {
				t.Errorf("no answer at %s", address)
			}
		}
	})
	t.Run("the same port where it is taken", func(t *testing.T) {
		_, port, _ := net.SplitHostPort(second)
		occupy(t, "127.0.0.9:"+port)
		if err := set("0.0.0.0:" + port); !errors.Is(err, status.ErrInUse) {
			t.Errorf("error %v, want ErrInUse", err)
		}
		if !answers(t, second) {
			t.Error("the old listener is lost")
		}
	})
	t.Run("off and on", func(t *testing.T) {
		move(t, "")
		awaitSilence(t, second)
		move(t, "")
		move(t, first)
		if !answers(t, first) {
			t.Error("no answer")
		}
	})
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := set(second); err == nil {
		t.Error("a server that has stopped listens again")
	}
	for _, a := range []string{first, second} {
		awaitSilence(t, a)
	}
}

// slow answers when it is told to.
type slow struct {
	*daemon
	asked, answer chan struct{}
}

func (s slow) Status() status.Document {
	close(s.asked)
	<-s.answer
	return status.Document{State: mesh.Ready}
}

// An answer that is on its way when the listener moves still comes.
func TestSetHTTPFinishesWhatRuns(t *testing.T) {
	first, second := freePort(t), freePort(t)
	d := slow{&daemon{}, make(chan struct{}), make(chan struct{})}
	server := status.NewServer(status.Options{Control: filepath.Join(t.TempDir(), "s"), HTTP: first, Daemon: d})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	<-server.Ready()
	got := make(chan error, 1)
	go func() {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Get("http://" + first + "/readyz")
		if err == nil {
			response.Body.Close()
		}
		got <- err
	}()
	<-d.asked
	if err := server.SetHTTP(t.Context(), second); err != nil {
		t.Error(err)
	}
	awaitSilence(t, first)
	close(d.answer)
	if err := <-got; err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
