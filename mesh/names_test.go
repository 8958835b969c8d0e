package mesh_test

import (
	"fmt"
	"strings"
	"testing"

	"meshd/mesh"
)

func TestCheckLabels(t *testing.T) {
	many, heavy := map[string]string{}, map[string]string{}
	for i := range mesh.MaxLabels + 1 {
		many[fmt.Sprint("k", i)] = ""
	}
	for i := range 5 {
		heavy[fmt.Sprint("k", i)] = strings.Repeat("v", mesh.MaxLabelValue)
	}
	for name, test := range map[string]struct {
		labels map[string]string
		ok     bool
	}{
		"none":            {nil, true},
		"usual":           {map[string]string{"site": "fra", "rack.row": "7/b", "empty": ""}, true},
		"no name":         {map[string]string{"": "x"}, false},
		"long name":       {map[string]string{strings.Repeat("k", mesh.MaxLabelKey+1): ""}, false},
		"long value":      {map[string]string{"k": strings.Repeat("v", mesh.MaxLabelValue+1)}, false},
		"space":           {map[string]string{"site": "new york"}, false},
		"escape sequence": {map[string]string{"site": "\x1b[2J"}, false},
		"not ASCII":       {map[string]string{"site": "köln"}, false},
		"too many":        {many, false},
		"too heavy":       {heavy, false},
	} {
		if err := mesh.CheckLabels(test.labels); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
