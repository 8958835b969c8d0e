package config_test

import (
	"encoding/json"
	"strings"
	"testing"

	"meshd/overlay/config"
)

func TestDocument(t *testing.T) {
	cfg, err := config.Parse("f", []byte("node: {name: alpha, labels: {site: fra}}\ninterface: {mtu: 1400}\n"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(config.Document(cfg))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"node":{"labels":{"site":"fra"},"name":"alpha"}`, `"mtu":1400`, `"seeds":[]`, `"http":"127.0.0.1:9740"`, `"log":{"format":"text","level":"info"}`,
	} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("%s lacks %s", raw, want)
		}
	}
}
