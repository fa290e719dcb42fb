package containerd

import (
	"context"
	"sync"
)

// keyLock lets one caller at a time work on each key. The zero value is ready.
type keyLock struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when released
}

// lock waits until nobody has key, or ctx ends; then it returns ctx's cause.
func (l *keyLock) lock(ctx context.Context, key string) (release func(), err error) {
	for {
		l.mu.Lock()
		other := l.held[key]
		if other == nil {
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			mine := make(chan struct{})
			l.held[key] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, key)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
