// What timer.cpp measures, of Go; which see. And bare: spread with nothing but timers.
package main

import (
	"context"
	"fmt"
	"math/rand"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func percentile(sample []time.Duration, which float64) float64 {
	sort.Slice(sample, func(i, j int) bool { return sample[i] < sample[j] })
	return float64(sample[int(which*float64(len(sample)-1))].Nanoseconds()) / 1e3
}

func cpuMilliseconds() float64 {
	var used syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	return float64(used.Utime.Nano()+used.Stime.Nano()) / 1e6
}

// wakeUpsOfOthers wants the goroutine locked to its thread.
func wakeUpsOfOthers() int {
	const field = "voluntary_ctxt_switches:"
	self := strconv.Itoa(syscall.Gettid())
	sum := 0
	threads, _ := os.ReadDir("/proc/self/task")
	for _, thread := range threads {
		if thread.Name() == self {
			continue
		}
		status, _ := os.ReadFile("/proc/self/task/" + thread.Name() + "/status")
		for _, line := range strings.Split(string(status), "\n") {
			if strings.HasPrefix(line, field) {
				n, _ := strconv.Atoi(strings.TrimSpace(line[len(field):]))
				sum += n
			}
		}
	}
	return sum
}

// sleep keeps the thread, so that the wake-up is not another's.
func sleep(d time.Duration) {
	left := syscall.NsecToTimespec(d.Nanoseconds())
	for syscall.Nanosleep(&left, &left) == syscall.EINTR {
	}
}

// spread observes each context by a goroutine that waits for it, as Go programs do.
func spread(scale float64) {
	spreadDeadlines(scale, func(due time.Time, passed func()) {
		ctx, cancel := context.WithDeadline(context.Background(), due)
		go func() {
			<-ctx.Done()
			passed()
			cancel()
		}()
	})
}

// bare leaves out the contexts and the goroutines: it is the least that Go's timers take.
func bare(scale float64) {
	spreadDeadlines(scale, func(due time.Time, passed func()) {
		time.AfterFunc(time.Until(due), passed)
	})
}

func spreadDeadlines(scale float64, set func(due time.Time, passed func())) {
	count := int(100000 * scale)
	order := rand.New(rand.NewSource(1)).Perm(count)
	lateness := make([]time.Duration, count)
	var left sync.WaitGroup
	left.Add(count)

	before := cpuMilliseconds()
	start := time.Now().Add(time.Second)
	for _, i := range order {
		i := i
		due := start.Add(time.Duration(i) * 10 * time.Microsecond)
		set(due, func() {
			lateness[i] = time.Since(due)
			left.Done()
		})
	}
	inTime := time.Until(start) > 0
	armed := cpuMilliseconds()
	left.Wait()
	after := cpuMilliseconds()

	early := 0
	for _, late := range lateness {
		if late < 0 {
			early++
		}
	}
	fmt.Printf(`{"p50": %.2f, "p99": %.2f, "early": %d, "cpu": %.1f, "cpu_expiring": %.1f, "armed_in_time": %t}`+"\n",
		percentile(lateness, 0.5), percentile(lateness, 0.99), early, after-before, after-armed, inTime)
}

func single(scale float64) {
	lateness := make([]time.Duration, int(200*scale))
	for i := range lateness {
		due := time.Now().Add(10 * time.Millisecond)
		ctx, cancel := context.WithDeadline(context.Background(), due)
		<-ctx.Done()
		lateness[i] = time.Since(due)
		cancel()
	}
	fmt.Printf(`{"wait_p50": %.2f}`+"\n", percentile(lateness, 0.5))
}

func idle(scale float64) {
	runtime.LockOSThread()
	cancels := make([]context.CancelFunc, 1000)
	for i := range cancels {
		_, cancels[i] = context.WithTimeout(context.Background(), time.Hour)
	}
	sleep(200 * time.Millisecond)
	before := wakeUpsOfOthers()
	sleep(time.Duration(5e9 * scale))
	fmt.Printf(`{"wake_ups": %d}`+"\n", wakeUpsOfOthers()-before)
	runtime.KeepAlive(cancels)
}

func busy(scale float64) {
	runtime.LockOSThread()
	random := rand.New(rand.NewSource(1))
	far := func() time.Duration { return time.Minute + time.Duration(random.Intn(3540000))*time.Millisecond }
	cancels := make([]context.CancelFunc, int(1000000*scale))
	for i := range cancels {
		_, cancels[i] = context.WithTimeout(context.Background(), far())
	}
	runtime.GC()
	sleep(200 * time.Millisecond)

	before := wakeUpsOfOthers()
	start := time.Now()
	soon, cancelSoon := context.WithTimeout(context.Background(), time.Second)
	replaced := 0
	for next := time.Duration(0); next < time.Duration(5e9*scale); next += 4 * time.Microsecond {
		i := random.Intn(len(cancels))
		cancels[i]()
		_, cancels[i] = context.WithTimeout(context.Background(), far())
		replaced++
		select {
		case <-soon.Done():
			cancelSoon()
			soon, cancelSoon = context.WithTimeout(context.Background(), time.Second)
		default:
		}
		for time.Since(start) < next {
		}
	}
	seconds := time.Since(start).Seconds()
	fmt.Printf(`{"wake_ups": %.1f, "replaced": %.0f}`+"\n",
		float64(wakeUpsOfOthers()-before)/seconds, float64(replaced)/seconds)
	cancelSoon()
}

func main() {
	measure := map[string]func(float64){"spread": spread, "bare": bare, "single": single, "idle": idle, "busy": busy}
	scale := 1.0
	if len(os.Args) > 2 {
		scale, _ = strconv.ParseFloat(os.Args[2], 64)
	}
	if len(os.Args) < 2 || measure[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: timer spread|bare|single|idle|busy [SCALE]")
		os.Exit(2)
	}
	measure[os.Args[1]](scale)
}
