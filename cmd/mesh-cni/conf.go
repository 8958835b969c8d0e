package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	cni "github.com/containernetworking/cni/pkg/version"

	"meshd/overlay/attach"
	"meshd/overlay/config"
)

// conf is a plugin's entry in a CNI configuration list.
type conf struct {
	types.PluginConf
	Network      string      `json:"network"` // of the mesh; empty: default
	Mode         attach.Mode `json:"mode"`
	Parent       string      `json:"parent"`
	Socket       string      `json:"socket"`
	DefaultRoute *bool       `json:"defaultRoute"` // nil: yes

	IPAM          map[string]any `json:"ipam"`
	RuntimeConfig wishes         `json:"runtimeConfig"`
	Args          struct {
		CNI wishes `json:"cni"`
	} `json:"args"`

	keys map[string]json.RawMessage
}

// wishes are what a runtime asks for with the capabilities ips and mac.
type wishes struct {
	IPs []string `json:"ips"`
	MAC string   `json:"mac"`
}

// environment is what CNI_ARGS may hold. Unknown names are refused, unless
// IgnoreUnknown=1 is among them.
type environment struct {
	types.CommonArgs
	IP                types.UnmarshallableString // one, or one of each family with a comma
	MAC               types.UnmarshallableString
	K8S_POD_NAMESPACE types.UnmarshallableString
	K8S_POD_NAME      types.UnmarshallableString
}

// known are the keys of a configuration besides those that start with "cni.dev/".
var known = []string{
	"cniVersion", "name", "type", "capabilities", "ipam", "dns", "prevResult", "runtimeConfig", "args",
	"network", "mode", "parent", "socket", "defaultRoute",
}

// parse reads a configuration as far as every command needs it.
func parse(args *skel.CmdArgs) (*conf, error) {
	c := conf{Socket: config.Default().Control}
	if err := json.Unmarshal(args.StdinData, &c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read configuration", err.Error())
	}
	if err := json.Unmarshal(args.StdinData, &c.keys); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read configuration", err.Error())
	}
	if err := cni.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read prevResult", err.Error())
	}
	if !filepath.IsAbs(c.Socket) {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "bad configuration", fmt.Sprintf("socket %q is no absolute path", c.Socket))
	}
	return &c, nil
}

// verify refuses what would be ignored otherwise. The daemon judges the values.
func (c *conf) verify() error {
	for _, key := range slices.Sorted(maps.Keys(c.keys)) {
		if !slices.Contains(known, key) && !strings.HasPrefix(key, "cni.dev/") {
			return unsupported(key, c.keys[key], "mesh-cni has "+strings.Join(known[9:], ", "))
		}
	}
	for key, value := range c.IPAM {
		if key != "type" || value != "meshd" && value != "" {
			return unsupported("ipam", c.keys["ipam"], "meshd gives the addresses: leave it out")
		}
	}
	return nil
}

func unsupported(key string, value []byte, advice string) error {
	const most = 200
	short := bytes.ToValidUTF8(value[:min(len(value), most)], nil)
	return types.NewError(types.ErrUnsupportedField, fmt.Sprintf("unsupported field %.70q: %s", key, short), advice)
}

// ask is what the daemon is asked for.
func (c *conf) ask(args *skel.CmdArgs) (attach.Ask, error) {
	var env environment
	if err := types.LoadArgs(args.Args, &env); err != nil {
		return attach.Ask{}, types.NewError(types.ErrInvalidEnvironmentVariables, "read CNI_ARGS", err.Error())
	}
	a := attach.Ask{ID: c.id(args), Network: c.Network, Mode: c.Mode, Parent: c.Parent, Container: container(args, env)}
	ips := slices.Concat(c.RuntimeConfig.IPs, c.Args.CNI.IPs)
	if env.IP != "" {
		ips = append(ips, strings.Split(string(env.IP), ",")...)
	}
	for _, text := range ips {
		ip, err := address(text)
		if err != nil {
			return attach.Ask{}, types.NewError(types.ErrInvalidNetworkConfig, "bad address", err.Error())
		}
		if !slices.Contains(a.Addresses, ip) {
			a.Addresses = append(a.Addresses, ip)
		}
	}
	for _, mac := range []string{c.RuntimeConfig.MAC, c.Args.CNI.MAC, string(env.MAC)} {
		if mac != "" && a.MAC != "" && !strings.EqualFold(mac, a.MAC) {
			return attach.Ask{}, types.NewError(types.ErrInvalidNetworkConfig, "bad MAC address", fmt.Sprintf("both %q and %q are wanted", a.MAC, mac))
		}
		if mac != "" {
			a.MAC = mac
		}
	}
	return a, nil
}

// address reads one with or without a length, which the subnet decides.
func address(text string) (netip.Addr, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Addr(), nil
	}
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return ip, errors.New(strings.TrimPrefix(err.Error(), "ParseAddr: "))
	}
	return ip, nil
}

// id names an attachment. Neither part holds a slash: the library has looked at
// them.
func (c *conf) id(args *skel.CmdArgs) string {
	return c.prefix() + args.ContainerID + "/" + args.IfName
}

// prefix starts the IDs of this CNI network's attachments.
func (c *conf) prefix() string { return "cni/" + c.Name + "/" }

// container is how people call it.
func container(args *skel.CmdArgs, env environment) string {
	name := args.ContainerID
	if env.K8S_POD_NAME != "" {
		name = string(env.K8S_POD_NAMESPACE + "/" + env.K8S_POD_NAME)
	}
	const most = 255 // what the daemon takes
	return name[:min(len(name), most)]
}

// previous is the result of ADD, as the runtime remembers it; nil: it does not.
func (c *conf) previous() (*types100.Result, error) {
	if c.PrevResult == nil {
		return nil, nil
	}
	r, err := types100.GetResult(c.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read prevResult", err.Error())
	}
	return r, nil
}
