package attach

// PeerName gives the Peer of what is attached by an ID, or was: a door finds it in
// a container when there is no daemon to ask.
func PeerName(id string) string {
	_, peer := links(id, Bridge) // the same for every mode
	return peer
}
