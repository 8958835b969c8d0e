package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/ns"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/status"
	"meshd/tun/inside"
)

// daemon is the one on this host. status.Client is one.
type daemon interface {
	Attach(ctx context.Context, ask attach.Ask) (attach.Attachment, error)
	Detach(ctx context.Context, id string) error
	Attachment(ctx context.Context, id string) (attach.Attachment, error)
	Attachments(ctx context.Context) ([]attach.Attachment, error)
	Status(ctx context.Context) (*status.Document, error)
}

// namespaces are those of containers, by their paths.
type namespaces interface {
	Put(ctx context.Context, ns string, want inside.Link) error
	Check(ctx context.Context, ns string, want inside.Link) error
	Remove(ctx context.Context, ns, peer string) error
}

// kernel is the namespaces of this host.
type kernel struct{}

func (kernel) Put(ctx context.Context, ns string, want inside.Link) error {
	return inside.Put(ctx, ns, want)
}

func (kernel) Check(ctx context.Context, ns string, want inside.Link) error {
	return inside.Check(ctx, ns, want)
}

func (kernel) Remove(ctx context.Context, ns, peer string) error { return inside.Remove(ctx, ns, peer) }

// plugin carries out CNI's commands, one in a process.
type plugin struct {
	stdout     io.Writer
	daemon     func(socket string) daemon
	namespaces namespaces
}

// undoWait bounds what is done for an ADD that has failed.
const undoWait = 10 * time.Second

// add attaches a container. If it fails, nothing is left of it, but for what an ADD
// before it has made.
func (p plugin) add(ctx context.Context, args *skel.CmdArgs) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	if err := c.verify(); err != nil {
		return err
	}
	if c.PrevResult != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "mesh-cni is not the first plugin of its list", "it makes the interface, and others work on that: put it before them")
	}
	if err := checkNamespace(args); err != nil {
		return err
	}
	ask, err := c.ask(args)
	if err != nil {
		return err
	}
	d := p.daemon(c.Socket)
	_, err = d.Attachment(ctx, ask.ID)
	fresh := errors.Is(err, attach.ErrUnknown)
	if err != nil && !fresh {
		return failed("attach the container", err)
	}
	a, err := d.Attach(ctx, ask)
	if err != nil {
		return failed("attach the container", err)
	}
	err = p.finish(ctx, c, args, a)
	if err != nil && fresh { // else the container runs, and has it in use
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWait)
		defer cancel()
		// Else the daemon takes it back, or the DEL that follows does.
		_ = d.Detach(undo, a.ID)
	}
	return err
}

// finish does the container's side.
func (p plugin) finish(ctx context.Context, c *conf, args *skel.CmdArgs, a attach.Attachment) error {
	if err := p.namespaces.Put(ctx, args.Netns, c.link(args, a)); err != nil {
		return failed("set up the interface in the container", err)
	}
	r, err := c.result(args, a).GetAsVersion(c.CNIVersion)
	if err == nil {
		err = r.PrintTo(p.stdout)
	}
	if err != nil {
		return types.NewError(types.ErrIOFailure, "print result", err.Error())
	}
	return nil
}

// checkNamespace refuses the host's own namespace before anything happens: the
// library does so only after ADD.
func checkNamespace(args *skel.CmdArgs) error {
	if _, err := os.Stat(args.Netns); err != nil {
		return types.NewError(types.ErrInvalidNetNS, "the container has no network namespace", err.Error())
	}
	if override := strings.ToUpper(args.NetnsOverride); override == "TRUE" || override == "1" {
		return nil
	}
	same, err := ns.CheckNetNS(args.Netns)
	switch {
	case err != nil:
		return err
	case same:
		return types.NewError(types.ErrInvalidNetNS, "the container has the host's network", fmt.Sprintf("CNI_NETNS is %s", args.Netns))
	}
	return nil
}

// del detaches a container, whatever is left of it. Without a daemon it takes the
// interface away all the same: when the daemon is back, it finds the host's end gone,
// and takes the address back. Where the host has no end, the runtime is to tell it.
func (p plugin) del(ctx context.Context, args *skel.CmdArgs) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	id := c.id(args)
	if args.Netns != "" {
		// By the peer's name: what else is called IfName stood in our way.
		if err := p.namespaces.Remove(ctx, args.Netns, attach.PeerName(id)); err != nil {
			return failed("remove the interface in the container", err)
		}
	}
	switch err := p.daemon(c.Socket).Detach(ctx, id); {
	case errors.Is(err, status.ErrNoDaemon) && !c.Mode.IsLAN():
		return nil
	case errors.Is(err, attach.ErrBadAsk): // nothing can have such an ID
		return nil
	default:
		return failed("detach the container", err)
	}
}

// check compares what ADD has said with what the daemon knows and with what the
// container has.
func (p plugin) check(ctx context.Context, args *skel.CmdArgs) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	r, err := c.previous()
	if err != nil {
		return err
	}
	if r == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing", "CHECK compares it with what there is")
	}
	a, err := p.daemon(c.Socket).Attachment(ctx, c.id(args))
	if err != nil {
		return failed("look the container up", err)
	}
	if a.State == attach.Stale {
		return types.NewError(codeChanged, "the container's address is none of this host any more", "the host has another subnet now: make the container anew")
	}
	want := c.link(args, a)
	if err := compare(r, args, &want); err != nil {
		return types.NewError(codeChanged, "prevResult is not what meshd knows", err.Error())
	}
	if err := p.namespaces.Check(ctx, args.Netns, want); err != nil {
		return types.NewError(codeChanged, "the container's network is not what it was", err.Error())
	}
	return nil
}

// gc detaches what this CNI network has attached and the runtime does not know any
// more.
func (p plugin) gc(ctx context.Context, args *skel.CmdArgs) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	valid := map[string]bool{}
	for _, a := range c.ValidAttachments {
		valid[c.prefix()+a.ContainerID+"/"+a.IfName] = true
	}
	d := p.daemon(c.Socket)
	all, err := d.Attachments(ctx)
	if err != nil {
		return failed("list what is attached", err)
	}
	var errs []error
	for _, a := range all {
		if strings.HasPrefix(a.ID, c.prefix()) && !valid[a.ID] {
			errs = append(errs, d.Detach(ctx, a.ID))
		}
	}
	return failed("detach what is left over", errors.Join(errs...))
}

// status tells whether an ADD would succeed, as far as the daemon knows.
func (p plugin) status(ctx context.Context, args *skel.CmdArgs) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	if err := c.verify(); err != nil {
		return err
	}
	doc, err := p.daemon(c.Socket).Status(ctx)
	if err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "meshd does not answer", err.Error())
	}
	network := cmp.Or(c.Network, mesh.DefaultNetwork)
	if !slices.ContainsFunc(doc.Networks, func(n status.Network) bool { return n.Name == network }) {
		return types.NewError(types.ErrPluginNotAvailable, "the mesh has no network "+network, "`meshctl network list` shows them")
	}
	switch doc.State {
	case mesh.Ready:
		return nil
	case mesh.Quarantine:
		return types.NewError(types.ErrLimitedConnectivity, "this host's subnet is quarantined", "containers reach others on this host only; see `meshctl status`")
	default:
		return types.NewError(types.ErrPluginNotAvailable, "meshd is not ready", fmt.Sprintf("it is %s, see `meshctl status`", doc.State))
	}
}
