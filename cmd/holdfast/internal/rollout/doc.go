// Package rollout follows applied workloads until they are as asked for, and
// tells in sentences why they are not yet.
//
// A [Tracker] is told of objects as they change and of events as they happen. It
// is pure: no clock, no connection. After each change the caller asks for the new
// lines, each said once, and for the [Verdict]. testdata states its behavior.
package rollout
