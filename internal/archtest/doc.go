// Package archtest holds the architecture's guard tests: who may import whom,
// and what every package owes its reader.
package archtest
