package main

import (
	"context"
	"fmt"
	"iter"
	"log"
	"os"

	"google.golang.org/adk/agent"
	"google.golang.org/adk/runner"
	"google.golang.org/adk/session"
	"google.golang.org/genai"

	holdfast "holdfast.internal/clients/go"
	"holdfast.internal/clients/go/adk"
)

func main() {
	// An agent that counts its user's turns, in all sessions.
	counter, err := agent.New(agent.Config{Name: "counter", Run: func(ctx agent.InvocationContext) iter.Seq2[*session.Event, error] {
		return func(yield func(*session.Event, error) bool) {
			turns, _ := ctx.Session().State().Get("user:turns")
			n, _ := turns.(float64)
			e := session.NewEventWithContext(ctx, ctx.InvocationID())
			e.Author = "counter"
			e.Content = genai.NewContentFromText(fmt.Sprintf("This is turn %v of %s", n+1, ctx.Session().UserID()), genai.RoleModel)
			e.Actions.StateDelta["user:turns"] = n + 1
			yield(e, nil)
		}
	}})
	if err != nil {
		log.Fatal(err)
	}
	sessions := adk.NewSessionService(holdfast.New(os.Getenv("HOLDFAST_API"), os.Getenv("HOLDFAST_TOKEN")))
	r, err := runner.New(runner.Config{AppName: "demo", Agent: counter, SessionService: sessions, AutoCreateSession: true})
	if err != nil {
		log.Fatal(err)
	}
	for _, id := range []string{"monday", "tuesday"} {
		for e, err := range r.Run(context.Background(), "ada", id, genai.NewContentFromText("Hello", genai.RoleUser), agent.RunConfig{}) {
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println(e.Content.Parts[0].Text)
		}
	}
}
