package status

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"meshd/mesh"
)

// liveHeap adds go_gc_heap_live_bytes: what is in use swings with the garbage in it.
var liveHeap = collectors.GoRuntimeMetricsRule{Matcher: regexp.MustCompile("^/gc/heap/live:bytes$")}

// MonitorHandler serves /metrics, /healthz (200 while the daemon runs) and
// /readyz (503 until the node is ready). It changes nothing and answers only
// requests for localhost or an IP address, so a web page cannot read it under a
// name that its owner points here (DNS rebinding).
func MonitorHandler(d Daemon) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collector{d},
		collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(liveHeap)),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4, // a scrape walks all peers
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		state := d.Status().State
		if state != mesh.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, state)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !localName(r.Host) {
			http.Error(w, "ask by IP address or as localhost", http.StatusForbidden)
			return
		}
		// On an error here the client has gone; there is nobody to tell.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
		mux.ServeHTTP(w, r)
	})
}

// localName tells whether a Host header names localhost or an IP address.
func localName(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	_, err := netip.ParseAddr(host)
	return err == nil || strings.EqualFold(host, "localhost")
}

// collector turns the document into metrics at each scrape, so that the two
// never disagree.
type collector struct{ daemon Daemon }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("meshd_"+name, help, labels, nil)
}

var (
	descBuild     = desc("build_info", "Version of the daemon; always 1.", "version")
	descState     = desc("state", "1 for the state that the node is in.", "state")
	descEpoch     = desc("epoch", "How often this node was started.")
	descLease     = desc("lease_state", "1 for each of the node's leases.", "network", "prefix", "state")
	descPeers     = desc("peers", "Number of peers in this state.", "state")
	descAttached  = desc("attachments", "Number of containers that are attached on this host.", "network", "state")
	descHealth    = desc("health_findings", "Number of health findings.", "level", "code")
	descDrops     = desc("dropped_packets_total", "Packets that the engine dropped.", "reason")
	descUp        = desc("peer_up", "1 if the peer is up.", "peer", "id")
	descRTT       = desc("peer_rtt_seconds", "Round-trip time through the tunnel.", "peer", "id")
	descLoss      = desc("peer_loss_ratio", "Share of probes through the tunnel that got no answer.", "peer", "id")
	descPathMTU   = desc("peer_path_mtu_bytes", "Largest packet that the path to the peer carries, where that is less than the MTU of the engine.", "peer", "id")
	descRx        = desc("peer_receive_bytes_total", "Bytes received from the peer.", "peer", "id")
	descTx        = desc("peer_transmit_bytes_total", "Bytes sent to the peer.", "peer", "id")
	descRevoked   = desc("revocations", "Number of revocations that this node knows, of nodes and tokens.")
	descConflicts = desc("lease_conflicts", "Number of leases in the mesh that lost a conflict and were not given up.")
	descExpired   = desc("peers_expired", "Number of peers whose leases are void: they were not heard of, or forgotten.")
	descCert      = desc("certificate_end_timestamp_seconds", "Unix time at which a node's certificate ends, this node's included.", "node", "id")
	descKey       = desc("gossip_key_generation", "Generation of the gossip key that this node has, and that it sends with.", "use")
	descKeyMade   = desc("gossip_key_made_timestamp_seconds", "Unix time at which the gossip key that this node sends with was made.")
	descHandshake = desc("peer_last_handshake_timestamp_seconds", "Unix time of the last handshake with the peer.", "peer", "id")
)

// Describe implements [prometheus.Collector].
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descBuild, descState, descEpoch, descLease, descPeers, descAttached, descHealth, descDrops,
		descRevoked, descConflicts, descExpired, descCert, descKey, descKeyMade,
		descUp, descRTT, descLoss, descPathMTU, descRx, descTx, descHandshake,
	} {
		out <- d
	}
}

// Collect implements [prometheus.Collector].
func (c collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, cleaned(labels)...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), cleaned(labels)...)
	}
	doc := c.daemon.Status()
	gauge(descBuild, 1, c.daemon.Version())
	for _, s := range []mesh.State{
		mesh.Ready, mesh.WaitingForSeed, mesh.Probing, mesh.Conflict, mesh.Renumbering,
		mesh.Quarantine, mesh.NoFreeSubnets, mesh.Left, mesh.Revoked,
	} {
		gauge(descState, truth(s == doc.State), string(s))
	}
	gauge(descEpoch, float64(doc.Node.Epoch))
	for _, l := range doc.Node.Leases {
		for _, p := range l.Prefixes {
			gauge(descLease, 1, l.Network, p.String(), l.State)
		}
	}
	gauge(descRevoked, float64(doc.Mesh.Revocations))
	conflicts, expired := lost(doc.Node.Leases), 0
	if end := doc.Node.CertificateEnds; end != nil {
		gauge(descCert, seconds(*end), doc.Node.Name, doc.Node.ID.String())
	}
	if k := doc.Node.GossipKey; k != nil {
		gauge(descKey, float64(k.Newest), "newest")
		gauge(descKey, float64(k.Sends), "sends")
	}
	if made := doc.Node.GossipKeyMade; made != nil {
		gauge(descKeyMade, seconds(*made))
	}
	for _, c := range doc.Attachments {
		gauge(descAttached, float64(c.Count), c.Network, string(c.State))
	}
	findings := map[[2]string]int{}
	for _, f := range doc.Health {
		findings[[2]string{f.Level, f.Code}]++
	}
	for k, n := range findings {
		gauge(descHealth, float64(n), k[0], k[1])
	}
	for reason, n := range doc.Engine.Drops {
		counter(descDrops, n, reason)
	}
	states := map[PeerState]int{PeerUp: 0, PeerIdle: 0, PeerDown: 0, PeerLeft: 0}
	for _, p := range doc.Peers {
		states[p.State]++
		id := p.ID.String()
		conflicts += lost(p.Leases)
		if p.Expired != mesh.NotExpired {
			expired++
		}
		if end := p.CertificateEnds; end != nil {
			gauge(descCert, seconds(*end), p.Name, id)
		}
		gauge(descUp, truth(p.State == PeerUp), p.Name, id)
		if p.RTTms != nil {
			gauge(descRTT, *p.RTTms/1000, p.Name, id)
		}
		if p.Loss != nil {
			gauge(descLoss, *p.Loss, p.Name, id)
		}
		if p.PathMTU != nil {
			gauge(descPathMTU, float64(*p.PathMTU), p.Name, id)
		}
		if p.RxBytes != nil {
			counter(descRx, *p.RxBytes, p.Name, id)
		}
		if p.TxBytes != nil {
			counter(descTx, *p.TxBytes, p.Name, id)
		}
		if p.LastHandshake != nil {
			gauge(descHandshake, seconds(*p.LastHandshake), p.Name, id)
		}
	}
	for s, n := range states {
		gauge(descPeers, float64(n), string(s))
	}
	gauge(descConflicts, float64(conflicts))
	gauge(descExpired, float64(expired))
}

// seconds is a moment as Prometheus has it.
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// lost counts the leases that lost a conflict.
func lost(leases []Lease) (n int) {
	for _, l := range leases {
		if l.State == mesh.Quarantined.String() {
			n++
		}
	}
	return n
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// cleaned makes label values valid UTF-8, without which there is no metric.
func cleaned(labels []string) []string {
	for i, l := range labels {
		labels[i] = clean(l)
	}
	return labels
}
