package mesh

import (
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// Each field counts, those that are added later too.
func TestEqualLooksAtEachField(t *testing.T) {
	t.Run("view", func(t *testing.T) { looksAtEach(t, func(a, b View) bool { return a.Equal(&b) }) })
	t.Run("node", func(t *testing.T) { looksAtEach(t, Node.Equal) })
	t.Run("lease", func(t *testing.T) { looksAtEach(t, Lease.Equal) })
}

func looksAtEach[T any](t *testing.T, equal func(a, b T) bool) {
	t.Helper()
	var zero T
	if !equal(zero, zero) {
		t.Error("it does not equal itself")
	}
	for f := range reflect.TypeFor[T]().Fields() {
		var other T
		value := reflect.ValueOf(&other).Elem().FieldByIndex(f.Index)
		switch value.Interface().(type) {
		case time.Time:
			value.Set(reflect.ValueOf(time.Unix(1, 0)))
		case netip.Addr:
			value.Set(reflect.ValueOf(netip.MustParseAddr("10.0.0.1")))
		case netip.Prefix:
			value.Set(reflect.ValueOf(netip.MustParsePrefix("10.0.0.0/8")))
		default:
			change(t, f.Name, value)
		}
		if equal(zero, other) || equal(other, zero) {
			t.Errorf("%s does not count", f.Name)
		}
	}
}

func change(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString("x")
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.Zero(v.Type().Key()), reflect.Zero(v.Type().Elem()))
	case reflect.Array:
		change(t, name, v.Index(0))
	case reflect.Struct:
		change(t, name, v.Field(0))
	default:
		t.Fatalf("%s is a %s: say here how to change that", name, v.Kind())
	}
}
