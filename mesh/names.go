package mesh

import "fmt"

// CheckName verifies the name of a node, a mesh or a network: 1 to 63 of a-z,
// 0-9 and "-", neither first nor last a "-". So a name is a DNS label, and safe
// in a terminal, a path and a log.
func CheckName(name string) error {
	ok := len(name) >= 1 && len(name) <= 63 && name[0] != '-' && name[len(name)-1] != '-'
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'
	}
	if !ok {
		return fmt.Errorf("name %.70q: 1 to 63 of a-z, 0-9 and -, neither first nor last a -", name)
	}
	return nil
}

// Bounds of a node's labels.
const (
	MaxLabels     = 16
	MaxLabelKey   = 32  // bytes
	MaxLabelValue = 64  // bytes
	MaxLabelBytes = 256 // of all together: a record holds them beside addresses and leases
)

// CheckLabels verifies a node's labels: words of printable ASCII without spaces.
func CheckLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return fmt.Errorf("%d labels, at most %d", len(labels), MaxLabels)
	}
	total := 0
	for k, v := range labels {
		if err := CheckLabel(k, v); err != nil {
			return err
		}
		total += len(k) + len(v)
	}
	if total > MaxLabelBytes {
		return fmt.Errorf("labels of %d bytes in all, at most %d", total, MaxLabelBytes)
	}
	return nil
}

// CheckLabel verifies one label.
func CheckLabel(key, value string) error {
	if key == "" || len(key) > MaxLabelKey || !IsWord(key) {
		return fmt.Errorf("label %.40q: a name has 1 to %d printable ASCII characters, no space", key, MaxLabelKey)
	}
	if len(value) > MaxLabelValue || !IsWord(value) {
		return fmt.Errorf("label %s: value %.70q: at most %d printable ASCII characters, no space", key, value, MaxLabelValue)
	}
	return nil
}

// IsWord tells whether s is printable ASCII without spaces, so that nothing in it
// can fool a terminal or a log. The empty string is.
func IsWord(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}
