// Go's net/http as its users write it: one goroutine per connection, encoding/json, a sync.Map of
// users, and atomics. The totals are separate, so /stats is exact only while no event is in flight.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
)

const (
	bodyBytesMax   = 16384
	userIDBytesMax = 256
)

// Pointers distinguish a missing member from one that is zero.
type event struct {
	UserID *string  `json:"userId"`
	Value  *float64 `json:"value"`
}

type stats struct {
	TotalRequests int64   `json:"totalRequests"`
	UniqueUsers   int64   `json:"uniqueUsers"`
	Sum           float64 `json:"sum"`
	Avg           float64 `json:"avg"`
}

type tally struct {
	requests    atomic.Int64
	sumBits     atomic.Uint64
	users       sync.Map
	uniqueUsers atomic.Int64
}

func (t *tally) add(user string, value float64) {
	if _, known := t.users.LoadOrStore(user, struct{}{}); !known {
		t.uniqueUsers.Add(1)
	}
	for {
		bits := t.sumBits.Load()
		sum := math.Float64frombits(bits) + value
		if t.sumBits.CompareAndSwap(bits, math.Float64bits(sum)) {
			break
		}
	}
	t.requests.Add(1)
}

func (t *tally) reset() {
	t.requests.Store(0)
	t.sumBits.Store(0)
	t.users.Clear()
	t.uniqueUsers.Store(0)
}

func (t *tally) stats() stats {
	answer := stats{
		TotalRequests: t.requests.Load(),
		UniqueUsers:   t.uniqueUsers.Load(),
		Sum:           math.Float64frombits(t.sumBits.Load()),
	}
	if answer.TotalRequests > 0 {
		answer.Avg = answer.Sum / float64(answer.TotalRequests)
	}
	return answer
}

func (t *tally) serveEvent(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	var e event
	if err == nil {
		// Unlike a Decoder, Unmarshal rejects trailing data.
		err = json.Unmarshal(body, &e)
	}
	if err != nil || e.UserID == nil || e.Value == nil ||
		len(*e.UserID) == 0 || len(*e.UserID) > userIDBytesMax {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	t.add(*e.UserID, *e.Value)
	w.WriteHeader(http.StatusOK)
}

func answerJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	// An error means that the peer has gone.
	_ = json.NewEncoder(w).Encode(value)
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: go-nethttp PORT THREADS")
		os.Exit(2)
	}
	threads, err := strconv.Atoi(os.Args[2])
	if err != nil || threads < 1 {
		fmt.Fprintln(os.Stderr, "THREADS is a number from 1")
		os.Exit(2)
	}
	runtime.GOMAXPROCS(threads)

	totals := &tally{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /event", totals.serveEvent)
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, totals.stats())
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, map[string]string{"status": "healthy"})
	})
	mux.HandleFunc("POST /reset", func(w http.ResponseWriter, _ *http.Request) {
		totals.reset()
		answerJSON(w, map[string]string{"status": "reset"})
	})
	if err := http.ListenAndServe("127.0.0.1:"+os.Args[1], mux); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
