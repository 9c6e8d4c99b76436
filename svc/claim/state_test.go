package claim

import (
	"errors"
	"strings"
	"testing"
)

func put(created int64, key string, ids ...string) change {
	return change{Key: key, Value: []byte(listJSON(ids)), Created: created, Version: 1}
}

func gone(key string) change { return change{Key: key, Deleted: true} }

// The state follows the rule also where keys come in an order, or list ids in a way, that no service
// writes them in; for all else see TestFollowingIsReading. Each step is one revision.
func TestRule(t *testing.T) {
	window := change{Key: "window/w", Value: []byte("24h"), Created: 1, Version: 1}
	tests := map[string][]struct {
		events []change
		want   string // of id x
	}{
		"the order of a list does not matter, nor an id that it names twice": {
			{[]change{put(2, "claim/a/2", "x", "y")}, "a/2@2"},
			{[]change{put(2, "claim/a/2", "y", "x", "x")}, "a/2@2 a/2@2"},
			{[]change{put(2, "claim/a/2", "x", "y")}, "a/2@2"},
			{[]change{put(2, "claim/a/2", "y")}, ""},
		},
		"a record without a window says nothing, nor does its end alone": {
			{[]change{put(2, "done/w/a/2", "x")}, ""},
			{[]change{window}, "done"},
			{[]change{gone("done/w/a/2")}, "done"},
		},
		"a forgotten id is forgotten once, and in one record": {
			{[]change{window, put(2, "done/w/a/2", "x", "y")}, "done"},
			{[]change{put(3, "forget/w/a/2", "x")}, ""},
			{[]change{put(2, "done/w/a/2", "x", "y", "z")}, ""},
			{[]change{put(6, "done/w/a/6", "x")}, "done"},
			{[]change{put(3, "forget/w/a/2", "x", "z")}, "done"},
		},
		"only the state after a whole revision counts": {
			{[]change{put(2, "claim/a/2", "x"), gone("claim/a/2"), put(3, "claim/b/2", "x")}, "b/2@3"},
		},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			s := newRoleState("a")
			for i, step := range steps {
				if err := s.Apply(step.events, func(string, *recordKey) {}); err != nil {
					t.Fatal(err)
				}
				if got := truthOf(s, "x").String(); got != step.want {
					t.Errorf("after revision %d x is %q, want %q", i, got, step.want)
				}
			}
		})
	}
}

// A key that cannot be read lists nothing, is named, and hides no other key.
func TestUnreadableKeys(t *testing.T) {
	for _, bad := range []change{
		{Key: "32/123", Value: []byte("done 17000000")}, // of the first version
		{Key: "claim/a/first", Value: []byte(`["x"]`)},
		{Key: "claim/a/2", Value: []byte(`"x"`)},
		{Key: "done/w/a/2", Value: []byte(`["x",1]`)},
		{Key: "forget/w/a/first", Value: []byte(`["y"]`)},
		{Key: "other/a", Value: []byte(`["x"]`)},
	} {
		s := newRoleState("a")
		err := s.Apply([]change{bad, put(3, "claim/b/2", "y")}, func(string, *recordKey) {})
		if err == nil || !strings.Contains(err.Error(), bad.Key) {
			t.Errorf("%s: the error is %v", bad.Key, err)
		}
		if x, y := truthOf(s, "x").String(), truthOf(s, "y").String(); x != "" || y != "b/2@3" {
			t.Errorf("after %s x is %q and y %q", bad.Key, x, y)
		}
	}
}

// Missed changes are detected by the versions of the sessions' keys.
func TestFollows(t *testing.T) {
	session := func(name string, version int64) change { return change{Key: "session/" + name, Version: version} }
	tests := map[string]struct {
		events []change
		ok     bool
	}{
		"the next write":             {[]change{session("a", 4)}, true},
		"the next two":               {[]change{session("a", 4), put(9, "claim/a/4", "x"), session("a", 5)}, true},
		"a new session":              {[]change{session("b", 1), session("b", 2)}, true},
		"a new one of the same name": {[]change{gone("session/a"), session("a", 1)}, true},
		"no session":                 {[]change{put(9, "claim/a/4", "x")}, true},
		"a write was missed":         {[]change{session("a", 5)}, false},
		"the first was missed":       {[]change{session("b", 2)}, false},
		"it went back":               {[]change{session("a", 3)}, false},
		"the second of two":          {[]change{session("a", 4), session("a", 6)}, false},
	}
	for name, tt := range tests {
		s := newRoleState("a")
		s.Apply([]change{session("a", 3)}, func(string, *recordKey) {})
		s.follows = true
		if err := s.Apply(tt.events, func(string, *recordKey) {}); (err == nil) != tt.ok || err != nil && !errors.Is(err, errMissed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
