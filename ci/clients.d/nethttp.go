// Go's net/http, with its default transport: goroutines that share its connections. Prints the number of acknowledged events.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

func main() {
	url := os.Args[1]
	events, _ := strconv.Atoi(os.Args[2])
	connections, _ := strconv.Atoi(os.Args[3])
	transport := http.DefaultTransport.(*http.Transport).Clone()
	// By default it keeps two idle connections to a host, and closes the others.
	transport.MaxIdleConnsPerHost = connections
	client := http.Client{Transport: transport}

	var acknowledged atomic.Int64
	var workers sync.WaitGroup
	for first := range connections {
		workers.Go(func() {
			for index := first; index < events; index += connections {
				event := fmt.Sprintf(`{"userId":"user_%d","value":%d.5}`, index%75000, index%1000)
				response, err := client.Post(url, "application/json", strings.NewReader(event))
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					continue
				}
				io.Copy(io.Discard, response.Body)
				response.Body.Close()
				if response.StatusCode == 200 || response.StatusCode == 201 {
					acknowledged.Add(1)
				}
			}
		})
	}
	workers.Wait()
	fmt.Println(acknowledged.Load())
}
