//go:build !linux

package onced

func systemClock() clock {
	return elapsedSinceNow()
}
