package status

import (
	"errors"
	"net/http"

	"meshd/overlay/attach"
)

// codes are the sentinels that keep their meaning on the way to a client.
var codes = []struct {
	code   string
	status int
	err    error
}{
	{"unknown_network", http.StatusNotFound, attach.ErrUnknownNetwork},
	{"unknown", http.StatusNotFound, attach.ErrUnknown},
	{"bad_ask", http.StatusBadRequest, attach.ErrBadAsk},
	{"outside", http.StatusBadRequest, attach.ErrOutside},
	{"taken", http.StatusConflict, attach.ErrTaken},
	{"in_use", http.StatusConflict, attach.ErrInUse},
	{"exhausted", http.StatusConflict, attach.ErrExhausted},
	{"no_lease", http.StatusServiceUnavailable, attach.ErrNoLease},
	{"delegated", http.StatusConflict, attach.ErrDelegated},
	{"damaged", http.StatusInternalServerError, attach.ErrDamaged},

	{"bad_config", http.StatusUnprocessableEntity, ErrBadConfig},
	{"unreadable", http.StatusForbidden, ErrUnreadable},
	{"unknown_node", http.StatusNotFound, ErrUnknownNode},
	{"ambiguous_node", http.StatusConflict, ErrAmbiguousNode},
	{"refused", http.StatusUnprocessableEntity, ErrRefused},
	{"not_next", http.StatusPreconditionFailed, ErrNotNext},
	{"lease_in_use", http.StatusConflict, ErrLeaseInUse},
	{"not_now", http.StatusConflict, ErrNotNow},
	{"not_allowed", http.StatusForbidden, ErrNotAllowed},
}

// codedError is the sentinel of a code; nil: there is none.
func codedError(code string) error {
	for _, e := range codes {
		if e.code == code {
			return e.err
		}
	}
	return nil
}

// replyFailure answers what went wrong, with its code if it has one.
func replyFailure(w http.ResponseWriter, err error) {
	for _, e := range codes {
		if errors.Is(err, e.err) {
			reply(w, e.status, errorReply{err.Error(), e.code})
			return
		}
	}
	replyError(w, http.StatusInternalServerError, err.Error())
}
