package config

// EachKey gives tests every key and section of the file, in its order.
func EachKey(yield func(path string, isSection bool) bool) {
	for _, k := range keys {
		if !yield(k.path, k.isSection()) {
			return
		}
	}
}

const MaxErrors = maxErrors
