package stack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// CPU returns the processor time that the server and its children have used
// since its start. It knows Linux only.
func (s *Server) CPU() (time.Duration, error) {
	p := s.process()
	if p == nil {
		return 0, os.ErrProcessDone
	}
	members := groupMembers(p.group)
	if len(members) == 0 {
		return 0, errors.New("there is no such process in /proc")
	}
	var ticks int64
	for _, m := range members {
		var user, system int64
		if _, err := fmt.Sscan(m.stat[11]+" "+m.stat[12], &user, &system); err != nil {
			return 0, fmt.Errorf("read %s/stat: %w", m.dir, err)
		}
		ticks += user + system
	}
	return time.Duration(ticks) * (time.Second / 100), nil // USER_HZ
}

// stopped reports whether all threads of the process group stand still. Where
// there is no /proc, it believes so.
func stopped(group int) bool {
	for _, m := range groupMembers(group) {
		threads, _ := filepath.Glob(m.dir + "/task/*/stat")
		for _, path := range threads {
			// Stopped, traced, or ended meanwhile.
			if stat := readStat(path); stat != nil && !strings.Contains("TtZX", stat[0]) {
				return false
			}
		}
	}
	return true
}

// member is a process of a group.
type member struct {
	dir  string   // in /proc
	stat []string // as readStat has it
}

func groupMembers(group int) (members []member) {
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		if stat := readStat(path); stat != nil && stat[2] == strconv.Itoa(group) {
			members = append(members, member{filepath.Dir(path), stat})
		}
	}
	return members
}

// readStat returns the fields of a stat file in /proc that follow the name,
// which may hold anything: the first is the state, the third the process group,
// the 12th and 13th the processor time. It is nil when the process has ended.
func readStat(path string) []string {
	stat, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
}
