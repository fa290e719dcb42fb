package scheduler

import "container/heap"

// podQueue is the pods to be tried, the most urgent first. A pod knows its place.
type podQueue struct{ pods []*pendingPod }

func (q *podQueue) push(p *pendingPod) {
	if p.queued == 0 {
		heap.Push((*podHeap)(q), p)
	}
}

func (q *podQueue) remove(p *pendingPod) {
	if p.queued > 0 {
		heap.Remove((*podHeap)(q), p.queued-1)
	}
}

// take returns the most urgent pods, at most limit, in order.
func (q *podQueue) take(limit int) (pods []*pendingPod) {
	for len(q.pods) > 0 && len(pods) < limit {
		pods = append(pods, heap.Pop((*podHeap)(q)).(*pendingPod))
	}
	return pods
}

// podHeap is a podQueue as package heap sees it.
type podHeap podQueue

func (h *podHeap) Len() int           { return len(h.pods) }
func (h *podHeap) Less(i, j int) bool { return h.pods[i].compare(h.pods[j]) < 0 }

func (h *podHeap) Swap(i, j int) {
	h.pods[i], h.pods[j] = h.pods[j], h.pods[i]
	h.pods[i].queued, h.pods[j].queued = i+1, j+1
}

func (h *podHeap) Push(p any) {
	h.pods = append(h.pods, p.(*pendingPod))
	h.pods[len(h.pods)-1].queued = len(h.pods)
}

func (h *podHeap) Pop() any {
	last := len(h.pods) - 1
	p := h.pods[last]
	h.pods[last] = nil
	h.pods = h.pods[:last]
	p.queued = 0
	return p
}

// slotHeap is nodes by slot, the best first. Where each stands is kept in a table
// that many heaps share: a node is in one of them.
type slotHeap struct {
	slots []int32
}

// up and down restore the order around i after its node has changed.
func (h *slotHeap) fix(i int, place []int32, less func(a, b int32) bool) {
	if !h.down(i, place, less) {
		h.up(i, place, less)
	}
}

func (h *slotHeap) up(i int, place []int32, less func(a, b int32) bool) {
	for i > 0 {
		parent := (i - 1) / 2
		if !less(h.slots[i], h.slots[parent]) {
			break
		}
		h.swap(i, parent, place)
		i = parent
	}
}

func (h *slotHeap) down(i int, place []int32, less func(a, b int32) bool) (moved bool) {
	for {
		child := 2*i + 1
		if child >= len(h.slots) {
			return moved
		}
		if right := child + 1; right < len(h.slots) && less(h.slots[right], h.slots[child]) {
			child = right
		}
		if !less(h.slots[child], h.slots[i]) {
			return moved
		}
		h.swap(i, child, place)
		i, moved = child, true
	}
}

func (h *slotHeap) swap(i, j int, place []int32) {
	h.slots[i], h.slots[j] = h.slots[j], h.slots[i]
	place[h.slots[i]], place[h.slots[j]] = int32(i), int32(j)
}

func (h *slotHeap) add(slot int32, place []int32, less func(a, b int32) bool) {
	h.slots = append(h.slots, slot)
	place[slot] = int32(len(h.slots) - 1)
	h.up(len(h.slots)-1, place, less)
}

func (h *slotHeap) remove(slot int32, place []int32, less func(a, b int32) bool) {
	i, last := int(place[slot]), len(h.slots)-1
	if i != last {
		h.swap(i, last, place)
	}
	h.slots = h.slots[:last]
	if i != last {
		h.fix(i, place, less)
	}
}
