package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

// An Order is what a message says.
type Order struct {
	Account string `json:"account"`
	Cents   int64  `json:"cents"`
}

// parse reads an order. Its errors name the field, and are for good: the message will not change.
func parse(body []byte) (Order, error) {
	var order Order
	if err := json.Unmarshal(body, &order); err != nil {
		return order, fmt.Errorf("body: %w", err)
	}
	if order.Account == "" {
		return order, fmt.Errorf("account: is missing")
	}
	if order.Cents <= 0 {
		return order, fmt.Errorf("cents: must be above 0, and is %d", order.Cents)
	}
	return order, nil
}

// rate asks another service how many points an order is worth: the slow and costly part.
func (w *worker) rate(ctx context.Context, id string, order Order) (int64, error) {
	query := url.Values{"message": {id}, "cents": {strconv.FormatInt(order.Cents, 10)}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, w.rates+"?"+query.Encode(), nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("rates: %s", response.Status)
	}
	var points int64
	if err := json.NewDecoder(response.Body).Decode(&points); err != nil {
		return 0, fmt.Errorf("rates: %w", err)
	}
	return points, nil
}
