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
// since its start. It works only on Linux.
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

// stopped reports whether all threads of the process group are stopped. Without /proc
// it returns true.
func stopped(group int) bool {
	for _, m := range groupMembers(group) {
		threads, _ := filepath.Glob(m.dir + "/task/*/stat")
		for _, path := range threads {
			// A thread in one of these states is stopped, traced or ended.
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
	stat []string // as readStat returns it
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

// readStat returns the fields that follow the name in a stat file in /proc: the first is
// the state, the third the process group, the 12th and 13th the processor time. The
// name itself may contain any character. readStat returns nil if the process has ended.
func readStat(path string) []string {
	stat, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
}
