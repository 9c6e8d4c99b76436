package claim

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// owner returns the state of an id in the notation of these tests: "done", "absent",
// or the session, write and token of the claim that owns the id.
func owner(s *roleState, id string) string {
	if s.Done(id) {
		return "done"
	}
	claims := s.Claims(id)
	if len(claims) == 0 {
		return "absent"
	}
	c := claims[0]
	return fmt.Sprintf("%s/%d token %d", c.session, c.write, c.token)
}

func put(created int64, key string, ids ...string) change {
	return change{Key: key, Value: []byte(listJSON(ids)), Created: created, Version: 1}
}

func gone(key string) change { return change{Key: key, Deleted: true} }

// The state follows the rule in the package documentation. Each step is one revision.
func TestRule(t *testing.T) {
	window := change{Key: "window/w", Value: []byte("24h"), Created: 1, Version: 1}
	tests := map[string][]struct {
		events []change
		want   string // of id x
	}{
		"claimed, recorded, forgotten": {
			{[]change{put(2, "claim/a/2", "x", "y")}, "a/2 token 2"},
			{[]change{window, put(3, "done/w/a/3", "x"), put(2, "claim/a/2", "y")}, "done"},
			{[]change{gone("done/w/a/3"), gone("window/w")}, "absent"},
		},
		"the oldest claim owns, and the next one when it goes": {
			{[]change{put(2, "claim/a/2", "x")}, "a/2 token 2"},
			{[]change{put(3, "claim/b/2", "x")}, "a/2 token 2"},
			{[]change{put(4, "claim/c/2", "x")}, "a/2 token 2"},
			{[]change{gone("claim/b/2")}, "a/2 token 2"},
			{[]change{gone("claim/a/2")}, "c/2 token 4"},
			{[]change{gone("claim/c/2")}, "absent"},
		},
		"claims are read in any order": {
			{[]change{put(4, "claim/c/2", "x"), put(2, "claim/b/2", "x"), put(3, "claim/a/9", "x")}, "b/2 token 2"},
			{[]change{gone("claim/b/2")}, "a/9 token 3"},
		},
		"an id is taken off its claim, and the claim keeps its age": {
			{[]change{put(2, "claim/a/2", "x", "y")}, "a/2 token 2"},
			{[]change{put(2, "claim/a/2", "x")}, "a/2 token 2"},
			{[]change{put(3, "claim/a/3", "x")}, "a/2 token 2"},
			{[]change{put(2, "claim/a/2", "y")}, "a/3 token 3"},
		},
		"the order of a list does not matter, nor an id that it names twice": {
			{[]change{put(2, "claim/a/2", "x", "y")}, "a/2 token 2"},
			{[]change{put(2, "claim/a/2", "y", "x", "x")}, "a/2 token 2"},
			{[]change{put(2, "claim/a/2", "x", "y")}, "a/2 token 2"},
			{[]change{put(2, "claim/a/2", "y")}, "absent"},
		},
		"a record without a window says nothing": {
			{[]change{put(2, "done/w/a/2", "x")}, "absent"},
			{[]change{window}, "done"},
		},
		"ids are added to a record, whose end alone says nothing": {
			{[]change{window, put(2, "done/w/a/2", "y")}, "absent"},
			{[]change{put(2, "done/w/a/2", "y", "x")}, "done"},
			{[]change{gone("done/w/a/2")}, "done"},
		},
		"the end of a window forgets its own ids only": {
			{[]change{window, {Key: "window/v", Created: 2, Version: 1}, put(2, "done/v/a/2", "x")}, "done"},
			{[]change{gone("window/w")}, "done"},
		},
		"a forgotten id is recorded again": {
			{[]change{window, put(2, "done/w/a/2", "x")}, "done"},
			{[]change{gone("window/w")}, "absent"},
			{[]change{{Key: "window/v", Created: 4, Version: 1}, put(5, "done/v/b/2", "x")}, "done"},
		},
		"an id is forgotten by hand, and stays so when its record is put again": {
			{[]change{window, put(2, "done/w/a/2", "x", "y")}, "done"},
			{[]change{put(3, "forget/w/a/2", "y")}, "done"},
			{[]change{put(3, "forget/w/a/2", "y", "x")}, "absent"},
			{[]change{put(2, "done/w/a/2", "x", "y", "z")}, "absent"},
			{[]change{put(6, "done/w/a/6", "x")}, "done"},
			{[]change{put(3, "forget/w/a/2", "y", "x", "z")}, "done"},
			{[]change{put(7, "forget/w/a/6", "x")}, "absent"},
			{[]change{gone("done/w/a/2"), gone("forget/w/a/2"), gone("window/w")}, "absent"},
		},
		"an id is forgotten in one of two windows": {
			{[]change{window, put(2, "done/w/a/2", "x")}, "done"},
			{[]change{put(3, "forget/w/a/2", "x")}, "absent"},
			{[]change{{Key: "window/v", Created: 4, Version: 1}, put(5, "done/v/b/2", "x")}, "done"},
			{[]change{gone("done/w/a/2"), gone("forget/w/a/2"), gone("window/w")}, "done"},
			{[]change{put(6, "forget/v/b/2", "x")}, "absent"},
		},
		"what is forgotten is read before the records": {
			{[]change{put(3, "forget/w/a/2", "x"), put(2, "done/w/a/2", "x"), put(2, "claim/b/2", "x"), window}, "b/2 token 2"},
		},
		"a done id has no owner": {
			{[]change{put(2, "claim/a/2", "x")}, "a/2 token 2"},
			{[]change{window, put(3, "done/w/b/2", "x")}, "done"},
			{[]change{gone("window/w")}, "a/2 token 2"},
		},
		"only the state after a whole revision counts": {
			{[]change{put(2, "claim/a/2", "x"), gone("claim/a/2"), put(3, "claim/b/2", "x")}, "b/2 token 3"},
		},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			s := newRoleState("a")
			for i, step := range steps {
				if err := s.Apply(step.events, func(string, *recordKey) {}); err != nil {
					t.Fatal(err)
				}
				if got := owner(s, "x"); got != step.want {
					t.Errorf("after revision %d x is %q, want %q", i, got, step.want)
				}
			}
		})
	}
}

// Apply names each id whose owner may have changed, including ids that the change removes.
func TestApplyNamesTheIDs(t *testing.T) {
	s := newRoleState("a")
	tests := []struct {
		event change
		want  string
	}{
		{put(2, "claim/a/2", "x", "y"), "x y"},
		{put(2, "claim/a/2", "y"), "x"},
		{put(3, "claim/b/2", "x"), "x"},
		{gone("claim/b/2"), "x"},
		{put(4, "done/w/a/3", "y", "x"), "x y"},
		{put(5, "forget/w/a/3", "y"), "y"},
		{put(4, "done/w/a/3", "y", "x", "z"), "x z"},
		{put(5, "forget/w/a/3", "y", "z"), "z"},
		{change{Key: "session/a", Version: 1}, ""},
	}
	for _, tt := range tests {
		changed := make(map[string]bool)
		if err := s.Apply([]change{tt.event}, func(id string, _ *recordKey) { changed[id] = true }); err != nil {
			t.Fatal(err)
		}
		var got []string
		for id := range changed {
			got = append(got, id)
		}
		slices.Sort(got)
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s concerns %q, want %q", tt.event.Key, got, tt.want)
		}
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
		if got := owner(s, "y"); got != "b/2 token 3" {
			t.Errorf("after %s y is %q", bad.Key, got)
		}
		if owner(s, "x") != "absent" {
			t.Errorf("%s lists x: %q", bad.Key, owner(s, "x"))
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
