package stack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	found := false
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		// The fields after the name, which may hold anything, from the third on.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		var group int
		var user, system int64
		if _, err := fmt.Sscan(fields[2]+" "+fields[11]+" "+fields[12], &group, &user, &system); err != nil {
			return 0, fmt.Errorf("read %s: %w", path, err)
		}
		if group == p.group {
			found = true
			sum += time.Duration(user+system) * (time.Second / 100) // USER_HZ
		}
	}
	if !found {
		return 0, errors.New("there is no such process in /proc")
	}
	return sum, nil
}
