// The operations of cost.cpp in Go, under the same names; which see. A line of JSON for each whose name
// matches -run.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"regexp"
	"runtime"
	"sync"
	"testing"
	"time"
)

var (
	run      = flag.String("run", "", "measure what matches this regular expression")
	duration = flag.Duration("time", 100*time.Millisecond, "how long to measure each")
)

type result struct {
	Name        string  `json:"name"`
	Nanoseconds float64 `json:"ns"`
	Allocations float64 `json:"allocations"`
	Bytes       float64 `json:"bytes"`
}

type operation struct {
	name    string
	measure func() result
}

var operations []operation

// The two ways to measure.

// add times what a benchmark of package testing times.
func add(name string, benchmark func(*testing.B)) {
	operations = append(operations, operation{name, func() result {
		r := testing.Benchmark(benchmark)
		n := float64(r.N)
		return result{name, float64(r.T.Nanoseconds()) / n, float64(r.MemAllocs) / n, float64(r.MemBytes) / n}
	}})
}

// addOn times operate alone on what prepare makes anew each time. It does count things.
func addOn[T any](name string, count int, prepare func() T, operate func(T)) {
	operations = append(operations, operation{name, func() result {
		var total time.Duration
		var before, after runtime.MemStats
		r := result{Name: name}
		n := 0.0
		for total < *duration {
			prepared := prepare()
			runtime.GC()
			runtime.ReadMemStats(&before)
			start := time.Now()
			operate(prepared)
			total += time.Since(start)
			runtime.ReadMemStats(&after)
			n += float64(count)
			r.Allocations += float64(after.Mallocs - before.Mallocs)
			r.Bytes += float64(after.TotalAlloc - before.TotalAlloc)
		}
		r.Nanoseconds = float64(total.Nanoseconds()) / n
		r.Allocations /= n
		r.Bytes /= n
		return r
	}})
}

// onThreads has as many goroutines as given share the iterations.
func onThreads(b *testing.B, threads int, operate func()) {
	if threads%runtime.GOMAXPROCS(0) == 0 {
		b.SetParallelism(threads / runtime.GOMAXPROCS(0))
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				operate()
			}
		})
		return
	}
	var all sync.WaitGroup
	for t := 0; t < threads; t++ {
		all.Add(1)
		go func(n int) {
			defer all.Done()
			for i := 0; i < n; i++ {
				operate()
			}
		}(b.N*(t+1)/threads - b.N*t/threads)
	}
	all.Wait()
}

// One context: made and canceled.

func addMaking() {
	root := context.Background()
	makeWithCancel := func(parent context.Context) {
		_, cancel := context.WithCancel(parent)
		cancel()
	}
	makeWithTimeout := func(parent context.Context) {
		_, cancel := context.WithTimeout(parent, time.Hour)
		cancel()
	}
	for name, make := range map[string]func(context.Context){"with_cancel": makeWithCancel, "with_timeout": makeWithTimeout} {
		make := make
		add(name+"/root", func(b *testing.B) {
			for i := 0; i < b.N; i++ {
				make(root)
			}
		})
		add(name+"/parent", func(b *testing.B) {
			parent, cancel := context.WithCancel(root)
			defer cancel()
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				make(parent)
			}
		})
		for _, threads := range []int{2, 4, 8} {
			threads := threads
			add(fmt.Sprintf("%s/root/threads=%d", name, threads), func(b *testing.B) {
				onThreads(b, threads, func() { make(root) })
			})
			add(fmt.Sprintf("%s/parent/threads=%d", name, threads), func(b *testing.B) {
				parent, cancel := context.WithCancel(root)
				defer cancel()
				b.ResetTimer()
				onThreads(b, threads, func() { make(parent) })
			})
		}
	}
}

// Asking.

func addAsking() {
	for _, state := range []string{"live", "canceled"} {
		ctx, cancel := context.WithCancel(context.Background())
		if state == "canceled" {
			cancel()
		}
		add("done/"+state, func(b *testing.B) {
			for i := 0; i < b.N; i++ {
				select {
				case <-ctx.Done():
				default:
				}
			}
		})
		add("err/"+state, func(b *testing.B) {
			for i := 0; i < b.N; i++ {
				ctx.Err()
			}
		})
	}
	add("context_cancel_done", func(b *testing.B) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				select {
				case <-ctx.Done():
				default:
				}
			}
		})
	})
}

// Values. Two kinds of keys: of a type of their own, the counterpart of keys with identity; and, as in Go's
// own benchmark, numbers of one type.

type storedKey int
type missingKey struct{}

func byType(i int) any   { return storedKey(i) }
func byNumber(i int) any { return i }

func chainOfValues(depth int, keyOf func(int) any) context.Context {
	chain := context.Background()
	for i := 0; i < depth; i++ {
		chain = context.WithValue(chain, keyOf(i), i)
	}
	return chain
}

func addValues() {
	addBuilding := func(name string, depth int, keyOf func(int) any) {
		add(fmt.Sprintf("%s/depth=%d", name, depth), func(b *testing.B) {
			for i := 0; i < b.N; i++ {
				chainOfValues(depth, keyOf)
			}
		})
	}
	for _, depth := range []int{10, 100} {
		depth := depth
		add(fmt.Sprintf("value/depth=%d", depth), func(b *testing.B) {
			chain := chainOfValues(depth, byType)
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				chain.Value(missingKey{})
			}
		})
		addBuilding("with_value", depth, byType)
	}
	for _, depth := range []int{10, 20, 30, 50, 100} {
		depth := depth
		add(fmt.Sprintf("deep_value/depth=%d", depth), func(b *testing.B) {
			chain := chainOfValues(depth, byNumber)
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				chain.Value(-1)
			}
		})
		addBuilding("with_deep_value", depth, byNumber)
	}
}

// Many contexts: wide trees and deep ones.

type scope struct {
	ctx    context.Context
	cancel context.CancelFunc
}

func withCancel(parent context.Context) scope {
	ctx, cancel := context.WithCancel(parent)
	return scope{ctx, cancel}
}

type family struct {
	parent  scope
	members []scope // children, or a chain of descendants
}

func (f *family) makeChildren(count int) {
	for i := 0; i < count; i++ {
		f.members = append(f.members, withCancel(f.parent.ctx))
	}
}

func (f *family) makeChain(count int) {
	last := f.parent.ctx
	for i := 1; i < count; i++ {
		f.members = append(f.members, withCancel(last))
		last = f.members[i-1].ctx
	}
}

func familiesOf(size int) []family {
	count := 1
	if size < 10000 {
		count = 10000 / size
	}
	made := make([]family, count)
	for i := range made {
		made[i] = family{withCancel(context.Background()), make([]scope, 0, size)}
	}
	return made
}

func cancelAll(all []family) {
	for i := range all {
		all[i].parent.cancel()
	}
}

func addTrees() {
	for size := 1; size <= 1000000; size *= 10 {
		size := size
		count := size
		if count < 10000 {
			count = 10000
		}
		addOn(fmt.Sprintf("create/children=%d", size), count,
			func() []family { return familiesOf(size) },
			func(all []family) {
				for i := range all {
					all[i].makeChildren(size)
				}
			})
		addOn(fmt.Sprintf("cancel/children=%d", size), count, func() []family {
			all := familiesOf(size)
			for i := range all {
				all[i].makeChildren(size)
			}
			return all
		}, cancelAll)
		if size > 100000 {
			continue
		}
		addOn(fmt.Sprintf("cancel/chain=%d", size), count, func() []family {
			all := familiesOf(size)
			for i := range all {
				all[i].makeChain(size)
			}
			return all
		}, cancelAll)
	}
}

// liveBytes measures what stays on the heap of what operate makes.
func liveBytes[T any](name string, prepare func() T, operate func(T)) {
	const count = 100000
	operations = append(operations, operation{name, func() result {
		prepared := prepare()
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		operate(prepared)
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(prepared)
		return result{
			Name:        name,
			Allocations: float64(after.HeapObjects-before.HeapObjects) / count,
			Bytes:       float64(after.HeapAlloc-before.HeapAlloc) / count,
		}
	}})
}

func addBytes() {
	const count = 100000
	liveBytes("bytes/child",
		func() []family { return familiesOf(count) },
		func(all []family) { all[0].makeChildren(count) })
	liveBytes("bytes/timeout",
		func() []scope { return make([]scope, count) },
		func(all []scope) {
			for i := range all {
				all[i].ctx, all[i].cancel = context.WithTimeout(context.Background(), time.Hour)
			}
		})
}

// Many timers.

func randomTimeouts(count int) []time.Duration {
	random := rand.New(rand.NewSource(1))
	made := make([]time.Duration, count)
	for i := range made {
		made[i] = 30*time.Minute + time.Duration(random.Int63n(int64(time.Hour)))
	}
	return made
}

func armAll(scopes []scope, timeouts []time.Duration) {
	for i, timeout := range timeouts {
		scopes[i].ctx, scopes[i].cancel = context.WithTimeout(context.Background(), timeout)
	}
}

func disarmAll(scopes []scope) {
	for i := range scopes {
		scopes[i].cancel()
	}
}

func addTimers() {
	for _, count := range []int{1000, 1000000} {
		count := count
		var timeouts []time.Duration
		var order []int
		prepare := func() []scope {
			if timeouts == nil {
				timeouts = randomTimeouts(count)
				order = rand.New(rand.NewSource(2)).Perm(count)
			}
			return make([]scope, count)
		}
		var armed []scope
		addOn(fmt.Sprintf("arm/timers=%d", count), count,
			func() []scope {
				// Garbage would stay in the runtime's heap of timers.
				disarmAll(armed)
				armed = prepare()
				return armed
			},
			func(scopes []scope) { armAll(scopes, timeouts) })
		addOn(fmt.Sprintf("disarm/timers=%d", count), count,
			func() []scope {
				scopes := prepare()
				armAll(scopes, timeouts)
				return scopes
			},
			func(scopes []scope) {
				for _, i := range order {
					scopes[i].cancel()
				}
			})
	}
	for _, live := range []int{1000, 1000000} {
		const count = 1000
		var others, armed []scope
		var timeouts []time.Duration
		var order []int
		prepare := func() []scope {
			if others == nil {
				others = make([]scope, live)
				armAll(others, randomTimeouts(live))
				timeouts = randomTimeouts(count)
				order = rand.New(rand.NewSource(2)).Perm(count)
			}
			disarmAll(armed)
			armed = make([]scope, count)
			return armed
		}
		addOn(fmt.Sprintf("arm/live=%d", live), count, prepare,
			func(scopes []scope) { armAll(scopes, timeouts) })
		addOn(fmt.Sprintf("disarm/live=%d", live), count,
			func() []scope {
				scopes := prepare()
				armAll(scopes, timeouts)
				armed = nil
				return scopes
			},
			func(scopes []scope) {
				for _, i := range order {
					scopes[i].cancel()
				}
			})
	}
	for count := 1; count <= 1000000; count *= 10 {
		count := count
		add(fmt.Sprintf("with_timeout/live=%d", count), func(b *testing.B) {
			scopes := make([]scope, count)
			armAll(scopes, randomTimeouts(count))
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				_, cancel := context.WithTimeout(context.Background(), time.Hour)
				cancel()
			}
			b.StopTimer()
			disarmAll(scopes)
		})
	}
}

// Go's own benchmarks, as far as they are not among the above.

func divideAHundredTimes(x int) int {
	for i := 0; i < 100; i++ {
		x /= x + 1
	}
	return x
}

func tree(root context.Context, depth int) {
	for i := 0; i < depth; i++ {
		root, _ = context.WithCancel(root)
	}
}

func addBenchmarksOfGo() {
	add("common_parent_cancel", func(b *testing.B) {
		root := context.WithValue(context.Background(), "key", "value")
		shared, cancel := context.WithCancel(root)
		defer cancel()
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			x := 0
			for pb.Next() {
				ctx, cancel := context.WithCancel(shared)
				if ctx.Value("key").(string) != "value" {
					b.Fatal("should not be reached")
				}
				x = divideAHundredTimes(x)
				cancel()
				x = divideAHundredTimes(x)
			}
		})
	})

	for _, concurrency := range []int{40, 4000, 400000} {
		concurrency := concurrency
		add(fmt.Sprintf("with_timeout/concurrency=%d", concurrency), func(b *testing.B) {
			others := make([]context.CancelFunc, concurrency)
			for i := range others {
				_, others[i] = context.WithTimeout(context.Background(), time.Hour)
			}
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				cancels := make([]context.CancelFunc, 10)
				for pb.Next() {
					for i := range cancels {
						_, cancels[i] = context.WithTimeout(context.Background(), time.Hour)
					}
					for _, cancel := range cancels {
						cancel()
					}
				}
			})
			b.StopTimer()
			for _, cancel := range others {
				cancel()
			}
		})
	}

	for _, depth := range []int{1, 10, 100, 1000} {
		depth := depth
		name := fmt.Sprintf("cancel_tree/depth=%d/root=", depth)
		add(name+"background", func(b *testing.B) {
			for i := 0; i < b.N; i++ {
				tree(context.Background(), depth)
			}
		})
		add(name+"open", func(b *testing.B) {
			for i := 0; i < b.N; i++ {
				ctx, cancel := context.WithCancel(context.Background())
				tree(ctx, depth)
				cancel()
			}
		})
		add(name+"closed", func(b *testing.B) {
			for i := 0; i < b.N; i++ {
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				tree(ctx, depth)
			}
		})
	}
}

func main() {
	testing.Init()
	version := flag.Bool("version", false, "print the version of Go")
	flag.Parse()
	if *version {
		fmt.Println(runtime.Version())
		return
	}
	flag.Set("test.benchtime", duration.String())
	wanted := regexp.MustCompile(*run)

	addMaking()
	addAsking()
	addValues()
	addTrees()
	addBytes()
	addTimers()
	addBenchmarksOfGo()

	out := json.NewEncoder(os.Stdout)
	for _, each := range operations {
		if wanted.MatchString(each.name) {
			out.Encode(each.measure())
		}
	}
}
