package agent

import (
	"errors"
	"testing"
	"time"
)

func TestMachineUsage(t *testing.T) {
	files := map[string]string{
		"/proc/stat":    "cpu  100 20 30 4000 500 6 7 800 90 10\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 1\n",
		"/proc/meminfo": "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n",
	}
	read := func(path string) ([]byte, error) {
		text, ok := files[path]
		if !ok {
			return nil, errors.New("no file " + path)
		}
		return []byte(text), nil
	}
	cpu, memory, err := machineUsage(read)
	if cpu != 1630*time.Millisecond || memory != 600*1024 || err != nil {
		t.Errorf("usage is %v, %d, %v; want user, nice, system and both interrupts: 1.63s, and what is not available: 614400", cpu, memory, err)
	}
	files["/proc/stat"] = "intr 1\n"
	if _, _, err := machineUsage(read); err == nil {
		t.Error("no error without a line cpu")
	}
	delete(files, "/proc/stat")
	if _, _, err := machineUsage(read); err == nil {
		t.Error("no error without /proc/stat")
	}
}

func TestNanocores(t *testing.T) {
	at := time.Now()
	for _, test := range []struct {
		name      string
		from, now sample
		want      int64
	}{
		{"half a CPU", sample{at, time.Second}, sample{at.Add(10 * time.Second), 6 * time.Second}, 500_000_000},
		{"two CPUs", sample{at, 0}, sample{at.Add(time.Second), 2 * time.Second}, 2_000_000_000},
		{"no time has passed", sample{at, 0}, sample{at, time.Second}, 0},
		{"another run", sample{at, time.Hour}, sample{at.Add(time.Second), time.Second}, 0},
	} {
		if got := test.from.nanocores(test.now); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}
