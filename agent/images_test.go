package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

func TestPlanImages(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	// NAME BYTES AGE [used], AGE since it was last used.
	images := func(text string) (all []imageUse) {
		for line := range strings.SplitSeq(text, ", ") {
			var name, age, used string
			var bytes int64
			if n, _ := fmt.Sscanf(line, "%s %d %s %s", &name, &bytes, &age, &used); n < 3 {
				t.Fatalf("%q is no image", line)
			}
			d, err := time.ParseDuration(age)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, imageUse{runtime.ImageState{Digest: name, Bytes: bytes}, used != "", now.Add(-d)})
		}
		return all
	}
	for _, c := range []struct {
		name, images string
		free         int64 // of 1000
		want         string
	}{
		{"below the high mark nothing goes", "a 100 1h", 150, "short 0"},
		{"the longest unused goes first, and no more than brings it to the low mark", "a 50 1h, b 50 3h, c 50 2h", 149, "b c short 0"},
		{"one is enough", "a 60 1h, b 60 3h", 145, "b short 0"},
		{"what is in use stays", "a 100 9h used, b 30 1h", 140, "b short 30"},
		{"what came just now stays", "a 100 119s, b 100 2m", 140, "b short 0"},
		{"equally old: in a fixed order", "b 10 1h, a 10 1h", 0, "a b short 180"},
		{"nothing to remove", "a 100 1h used", 0, "short 200"},
	} {
		t.Run(c.name, func(t *testing.T) {
			remove, short := planImages(images(c.images), runtime.Disk{Bytes: 1000, FreeBytes: c.free}, 85, 80, imageMinAge, now)
			var words []string
			for _, i := range remove {
				words = append(words, i.Digest)
			}
			if got := strings.Join(append(words, fmt.Sprint("short ", short)), " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	if remove, _ := planImages(images("a 1 1h"), runtime.Disk{}, 85, 80, imageMinAge, now); remove != nil {
		t.Errorf("a disk of no size: %v goes", remove)
	}
}
