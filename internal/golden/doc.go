// Package golden runs tests whose input and expected output are text files.
//
// A case is a txtar archive: a comment that states the rule, the inputs as
// files, and the expected output as the file "want". Run the tests with -update
// to write what came out into "want", then review the difference as part of the
// change.
package golden
