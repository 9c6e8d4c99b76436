package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The README's table and the command's doc comment list every variable with the default
// in the code.
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
	for _, m := range regexp.MustCompile("`env:\"(\\w+)\"(?: envDefault:\"([^\"]*)\")?").FindAllStringSubmatch(read("../../config.go"), -1) {
		code[m[1]] = m[2]
	}
	if len(code) < 20 {
		t.Fatalf("only %d variables found in config.go", len(code))
	}
	doc, _, _ := strings.Cut(read("../../main.go"), "package main")
	for place, row := range map[string]*regexp.Regexp{
		read("../../../README.md"): regexp.MustCompile(`(?m)^\| ([A-Z_, ]+) \| (.*?) \|`),
		doc:                        regexp.MustCompile(`(?m)^//\t([A-Z_]+(?:, [A-Z_]+)*) +(\S+)`),
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
					t.Errorf("%s lists %s, which config.go does not have", name, v)
				}
				if got := defaults[min(i, len(defaults)-1)]; want != "" && got != want {
					t.Errorf("%s: the default of %s is %q, but %q in config.go", name, v, got, want)
				}
				found[v] = true
			}
		}
		for v := range code {
			if !found[v] {
				t.Errorf("%s does not list %s", name, v)
			}
		}
	}
}
