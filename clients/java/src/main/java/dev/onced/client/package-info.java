/**
 * Run a function once for a key, wherever and however often it is called. Start at {@link dev.onced.client.Onced}.
 */
package dev.onced.client;
