package tunneltest

import (
	"io"
	"os"
	"sync"
	"time"
)

// Pipe is an in-memory TUN device without offloads. The engine has the end with
// Read, Write and Close; the test has the end with Send and Receive.
type Pipe struct {
	toEngine   chan []byte
	fromEngine chan []byte
	closed     chan struct{}
	closeOnce  sync.Once
}

// NewPipe makes a pipe. It holds up to 1024 packets each way and drops what is
// beyond, as a link does.
func NewPipe() *Pipe {
	return &Pipe{toEngine: make(chan []byte, 1024), fromEngine: make(chan []byte, 1024), closed: make(chan struct{})}
}

// Name is "pipe".
func (p *Pipe) Name() string { return "pipe" }

// MTU is [MTU], always.
func (p *Pipe) MTU() (int, error) { return MTU, nil }

// File is nil: packets go through Read and Write.
func (p *Pipe) File() *os.File { return nil }

// Read gives the engine the next packet, or [io.EOF] after Close.
func (p *Pipe) Read(b []byte) (int, error) {
	select {
	case <-p.closed:
		return 0, io.EOF
	case packet := <-p.toEngine:
		return copy(b, packet), nil
	}
}

// Write takes a packet from the engine.
func (p *Pipe) Write(b []byte) (int, error) {
	select {
	case <-p.closed:
		return 0, io.ErrClosedPipe
	case p.fromEngine <- append([]byte(nil), b...):
	default: // full
	}
	return len(b), nil
}

// Close ends both directions.
func (p *Pipe) Close() error {
	p.closeOnce.Do(func() { close(p.closed) })
	return nil
}

// Closed tells whether the engine, or the test, has closed the pipe.
func (p *Pipe) Closed() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

// Send hands a packet to the engine, as a program on the host would.
func (p *Pipe) Send(packet []byte) {
	select {
	case p.toEngine <- packet:
	default:
	}
}

// Receive waits for a packet that the engine delivered to the host.
func (p *Pipe) Receive(timeout time.Duration) ([]byte, bool) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case packet := <-p.fromEngine:
		return packet, true
	case <-timer.C:
		return nil, false
	}
}
