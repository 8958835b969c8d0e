package gossip

import (
	"crypto/rand"
	"encoding/hex"
	"strings"

	"meshd/mesh"
)

// An instance name is a node's ID and 8 hexadecimal digits drawn when the
// memberlist instance was made:
//
//	k2ydm4q7...(32).9f03ac71
//
// memberlist refuses a live name at another address. Since no two instances
// share a name, a restart or a move is a new name to it, at once welcome, and
// the old one fades out by itself.
const nonceSize = 4

func newName(id mesh.NodeID) string {
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:]) // never fails since Go 1.24
	return id.String() + "." + hex.EncodeToString(nonce[:])
}

// parseName tells whose instance a name is.
func parseName(name string) (mesh.NodeID, bool) {
	id, nonce, ok := strings.Cut(name, ".")
	if !ok || len(nonce) != 2*nonceSize {
		return mesh.NodeID{}, false
	}
	if _, err := hex.DecodeString(nonce); err != nil {
		return mesh.NodeID{}, false
	}
	parsed, err := mesh.ParseID(id)
	return parsed, err == nil
}
