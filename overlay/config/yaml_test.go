package config_test

import (
	"testing"

	"meshd/overlay/config"
)

func TestToYAML(t *testing.T) {
	got, err := config.ToYAML(struct {
		Name  string         `json:"name"`
		Count int            `json:"count"`
		None  *int           `json:"none"`
		Text  []string       `json:"text"`
		Empty []string       `json:"empty"`
		Map   map[string]any `json:"map"`
	}{"alpha", 3, nil, []string{"12", "true", "a: b", "plain"}, []string{}, map[string]any{"x": 0.5}})
	if err != nil {
		t.Fatal(err)
	}
	want := `name: alpha
count: 3
none: null
text:
  - "12"
  - "true"
  - 'a: b'
  - plain
empty: []
map:
  x: 0.5
`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
