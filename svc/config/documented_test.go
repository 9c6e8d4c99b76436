package config

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// The README's table and the command's doc comment list every variable with its default.
func TestConfigurationIsDocumented(t *testing.T) {
	defaults := make(map[string]string)
	for field := range reflect.TypeFor[Config]().Fields() {
		if variable := field.Tag.Get("env"); variable != "" {
			defaults[variable] = field.Tag.Get("envDefault")
		}
	}
	for path, row := range map[string]*regexp.Regexp{
		"../../README.md": regexp.MustCompile(`(?m)^\| ([A-Z_, ]+) \| (.*?) \|`),
		"../main.go":      regexp.MustCompile(`(?m)^//\t([A-Z_]+(?:, [A-Z_]+)*) +(\S+)`),
	} {
		text, err := os.ReadFile(path)
		must(t, err)
		listed := make(map[string]bool)
		for _, m := range row.FindAllStringSubmatch(string(text), -1) {
			variables, values := strings.Split(m[1], ", "), strings.Split(m[2], ", ")
			for i, variable := range variables {
				want, known := defaults[variable]
				if !known {
					t.Errorf("%s lists %s, which Config does not have", path, variable)
				}
				if got := values[min(i, len(values)-1)]; want != "" && got != want {
					t.Errorf("%s: the default of %s is %q, want %q", path, variable, got, want)
				}
				listed[variable] = true
			}
		}
		for variable := range defaults {
			if !listed[variable] {
				t.Errorf("%s does not list %s", path, variable)
			}
		}
	}
}
