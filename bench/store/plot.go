package main

func plotAll(dir string, samples []sample) error { return nil }
