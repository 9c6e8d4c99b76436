package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The README's table and the command's doc name every variable, with the default
// that the code has.
func TestConfigurationIsDocumented(t *testing.T) {
	t.Parallel()
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	code := make(map[string]string) // default by variable
	for _, m := range regexp.MustCompile("`env:\"(\\w+)\"(?: envDefault:\"([^\"]*)\")?").FindAllStringSubmatch(read("../config.go"), -1) {
		code[m[1]] = m[2]
	}
	if len(code) < 20 {
		t.Fatalf("only %d variables found in config.go", len(code))
	}
	doc, _, _ := strings.Cut(read("../main.go"), "package main")
	for place, row := range map[string]*regexp.Regexp{
		read("../../README.md"): regexp.MustCompile(`(?m)^\| ([A-Z_, ]+) \| (.*?) \|`),
		doc:                     regexp.MustCompile(`(?m)^//\t([A-Z_]+(?:, [A-Z_]+)*) +(\S+)`),
	} {
		name := "README.md"
		if place == doc {
			name = "the doc of main.go"
		}
		found := make(map[string]bool)
		for _, m := range row.FindAllStringSubmatch(place, -1) {
			variables, defaults := strings.Split(m[1], ", "), strings.Split(m[2], ", ")
			for i, v := range variables {
				want, known := code[v]
				if !known {
					t.Errorf("%s: there is no variable %s", name, v)
				}
				if got := defaults[min(i, len(defaults)-1)]; want != "" && got != want {
					t.Errorf("%s: the default of %s is %q, in the code %q", name, v, got, want)
				}
				found[v] = true
			}
		}
		for v := range code {
			if !found[v] {
				t.Errorf("%s does not name %s", name, v)
			}
		}
	}
}
