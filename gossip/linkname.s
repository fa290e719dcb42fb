// Empty on purpose: with a .s file in the package the compiler accepts the
// function without a body in memberlist.go.
