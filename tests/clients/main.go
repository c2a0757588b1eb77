// Go's net/http, as gh and Terraform use it.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

func main() {
	for _, path := range []string{"/repos/o/r", "/repos/o/r", "/repos/o/moved", "/repos/o/none"} {
		request, _ := http.NewRequest("GET", "https://api.github.com"+path, nil)
		request.Header.Set("Authorization", "Bearer ghp_dummy")
		reply, err := http.DefaultClient.Do(request)
		if err != nil {
			fmt.Println(path, err)
			os.Exit(1)
		}
		body, _ := io.ReadAll(reply.Body)
		reply.Body.Close()
		fmt.Println(path, reply.StatusCode, reply.Proto, strings.Contains(string(body), `"o/r"`))
	}
}
