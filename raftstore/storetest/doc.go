// Package storetest gives tests a store: real raft, real state machine, with log
// and network in memory. It works within testing/synctest and without.
package storetest
